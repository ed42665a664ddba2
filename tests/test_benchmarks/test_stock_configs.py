"""The list of configs in the sweep and its table, and failures that the table must report."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.stock_configs import LIST, RESULTS, check, deviation, markdown, read_results

NAMES = [line for line in LIST.read_text().splitlines() if line and not line.startswith('#')]


def test_there_are_thirty_stock_configs():
    assert len(set(NAMES)) == len(NAMES) >= 30
    for name in NAMES:
        library, path = name.split('::')
        assert (Path(find_spec(library).origin).parent / '.mim/configs' / path).is_file()


def test_the_table_is_that_of_the_results():
    assert RESULTS.with_suffix('.md').read_text() == markdown(list(read_results(RESULTS).values()))


def test_a_failure_is_a_row(capsys):
    row = check('mmpretrain::resnet/resnet18_8xb32_in1k.py', [dict(become='keep', names='steam')])
    assert row['result'] == 'fail'
    assert row['reason'].startswith('build: UserError: policy[0]') and 'selects no layer' in row['reason']
    assert json.loads(json.dumps(row)) == row


def test_deviation_is_relative_to_the_largest():
    expected = [torch.tensor([10.0, -20.0]), torch.tensor([1])]
    assert deviation([torch.tensor([10.0, -19.0]), torch.tensor([5])], expected) == pytest.approx(0.05)
