"""The networks of the model zoo and its table."""

import pytest
from mmgroupnet_runtime import UserError

from benchmarks import zoo
from mmgroupnet.engine.configs import load_config


def test_every_network_has_a_config_that_evaluates_its_metric():
    evaluators = {'coco/bbox_mAP': 'CocoMetric', 'mIoU': 'IoUMetric', 'accuracy/top1': 'Accuracy'}
    for entry in zoo.ENTRIES.values():
        cfg = load_config(str(zoo.ROOT / 'configs' / entry.config))
        assert cfg.test_evaluator.type == evaluators[entry.metric]


def test_table():
    line = dict(
        name='fcos_groupnet_digits',
        values={'float.pth': 0.7301, 'packed.pth': 0.73, 'model.onnx': 0.7299},
        bytes={'float.pth': 36_800_000, 'packed.pth': 1_450_000, 'model.onnx': 1_550_000},
        seconds=480,
    )
    row = zoo.results_table([line]).splitlines()[-1]
    assert row == '| digits, FCOS, K = 3 | bbox_mAP | 0.7301, 36.80 MB | 0.73, 1.45 MB | 0.7299, 1.55 MB | 8 min |'


def test_an_unknown_network(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['zoo.py', 'fcos'])
    with pytest.raises(SystemExit):
        zoo.main()
    assert 'fcos: the zoo has fcos_groupnet_digits' in capsys.readouterr().err


def test_without_the_library_of_operators_no_training_begins(monkeypatch, capsys):
    def missing():
        raise UserError('the library is missing')

    monkeypatch.setattr('sys.argv', ['zoo.py', 'fcos_groupnet_digits'])
    monkeypatch.setattr(zoo, 'library_path', missing)
    monkeypatch.setattr(zoo, 'collect', None)
    with pytest.raises(SystemExit):
        zoo.main()
    assert 'the library is missing' in capsys.readouterr().err
