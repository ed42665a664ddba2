"""In a fresh process, every file that the tools write opens in all inferencers and init functions of its library."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.inferencer_files import KINDS, write_files

SCRIPT = Path(__file__).parents[1] / 'open_in_inferencers.py'
WAYS = dict(mmdet=5, mmseg=5, mmpretrain=6)


@pytest.mark.slow
@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_all_files_open_everywhere(library, tmp_path):
    (tmp_path / 'files.json').write_text(json.dumps(write_files(tmp_path, library)))
    environment = dict(os.environ, PYTHONPATH=str(SCRIPT.parents[1]), OMP_NUM_THREADS='1')
    command = [sys.executable, '-W', 'ignore', str(SCRIPT), str(tmp_path / 'files.json')]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert [entry for entry in found if 'error' in entry] == []
    predictions = defaultdict(list)
    for entry in found:
        predictions[entry['kind']].append(torch.tensor(entry['prediction']))
    assert {kind: len(ways) for kind, ways in predictions.items()} == dict.fromkeys(KINDS, WAYS[library])
    binarised = {kind for kind in KINDS if kind.startswith('binarised')}
    for group in (binarised, set(KINDS) - binarised):
        first, *others = (prediction for kind in group for prediction in predictions[kind])
        assert len(first) > 1
        for other in others:
            assert_close(other, first, atol=1e-5, rtol=1e-4)
    assert not torch.equal(predictions['trained'][0], predictions['binarised'][0])
