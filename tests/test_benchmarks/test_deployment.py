"""The benchmark of exported models."""

import pytest

from benchmarks.deployment import SUBJECTS, Network, Subject, _checkpoint, least_cycles, results_table
from benchmarks.timing import Spread


def test_least_cycles_of_cores():
    # 100 SIMD instructions, 40 of them multiply-adds. The A53 starts one per cycle; the A72 two, but a multiply-add
    # takes a whole cycle; the A76 two of any kind.
    assert [least_cycles(f'cortex-{core}', 100, 40) for core in ('a53', 'a72', 'a76')] == [100, 70, 50]


def test_an_untrained_network_names_the_command_that_trains_it(tmp_path):
    network = Network('configs/demo/fcos_groupnet_digits.py', 'work_dirs/there_is_none')
    subject = Subject((8, 8), network, network, 'make demo')
    with pytest.raises(FileNotFoundError, match='there_is_none/last_checkpoint does not exist: `make demo` trains'):
        _checkpoint(subject, network, tmp_path)


def test_every_trained_subject_says_what_trains_it():
    for subject in SUBJECTS.values():
        assert bool(subject.training) == (subject.binary.work_dir is not None)


def test_table():
    row = dict(name='.onnx on bits', ms=Spread(2, 1, 3, 9), over_twin=Spread(1.5, 1, 2, 9), bytes=1_550_000)
    table = results_table({'tiny': dict(size=(8, 16), contestants=[row], skipped={})})
    assert '| tiny, 8x16 | .onnx on bits | 2.00 (1.00..3.00) | 1.50x | 1.55 |' in table
