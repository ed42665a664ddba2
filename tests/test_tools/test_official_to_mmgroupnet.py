"""tools/model_converters/official_to_mmgroupnet.py: its files, their use with other tools, and its errors."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from mmgroupnet.converters import convert_official
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.packing import pack_checkpoint
from mmgroupnet.engine.testing import run_test
from tests.official import FAMILIES, OfficialNetwork, official_state_dict

SCRIPT = Path(__file__).parents[2] / 'tools' / 'model_converters' / 'official_to_mmgroupnet.py'
FAMILY = FAMILIES['r18-gates']


@pytest.fixture(scope='module')
def state_dict():
    return official_state_dict(FAMILY, num_bases=3, num_classes=1000, dtype=torch.float32)


@pytest.fixture
def source(tmp_path, state_dict):
    """A checkpoint in the authors' format."""
    path = tmp_path / 'resnet18.pth.tar'
    names = {f'module.{name}': value for name, value in state_dict.items()}
    content = dict(epoch=40, arch='resnet18', state_dict=names, best_prec1=torch.tensor(64.8))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def convert(monkeypatch, capsys):
    """A function that runs the tool in this process; returns exit status, output and errors."""
    spec = importlib.util.spec_from_file_location('official_to_mmgroupnet', SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, arguments)])
        status = 0
        try:
            script.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_a_person_converts_and_tests(tmp_path, source, state_dict):
    """Converts a checkpoint from the command line, then tests and packs it. The short side of the four pictures is 256,
    so they are not resized."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    command = [sys.executable, str(SCRIPT), str(source), 'new/r18.pth']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ['new/r18.pth: the checkpoint', 'new/r18.py: its config']

    root = tmp_path / 'imagenet'
    rng = np.random.default_rng(0)
    (root / 'val').mkdir(parents=True)
    (root / 'meta').mkdir()
    pictures = [rng.integers(0, 255, (256, 256, 3)).astype(np.uint8) for _ in range(4)]
    model_cfg, weights = convert_official(state_dict)
    model = MODELS.build(model_cfg).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        crops = [torch.from_numpy(picture[16:240, 16:240]).permute(2, 0, 1) for picture in pictures]
        data = model.data_preprocessor(dict(inputs=crops))
        labels = model(data['inputs'], mode='tensor').argmax(dim=1).tolist()
    assert len(set(labels)) > 1
    labels[3] = (labels[3] + 1) % 1000  # so the model is right for three of the four pictures
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(root / f'val/{number}.png'), picture)
    lines = (f'{number}.png {label}\n' for number, label in enumerate(labels))
    (root / 'meta/val.txt').write_text(''.join(lines))

    cfg = load_config(str(tmp_path / 'new/r18.py'))
    check_arguments(cfg)
    cfg.merge_from_dict(dict(work_dir=str(tmp_path / 'work'), launcher='none', experiment_name=tmp_path.name))
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
    packed = tmp_path / 'packed.pth'
    assert len(pack_checkpoint(cfg, tmp_path / 'new/r18.pth', packed, strict=True)) == 19
    for number, checkpoint in enumerate((tmp_path / 'new/r18.pth', packed)):
        cfg.experiment_name = f'{tmp_path.name}_{number}'
        assert run_test(cfg, str(checkpoint))['accuracy/top1'] == 75


def test_the_file_is_a_checkpoint_of_mmengine(tmp_path, source, convert, state_dict):
    status, _, _ = convert(source, tmp_path / 'r18.pth')
    assert status == 0
    content = torch.load(tmp_path / 'r18.pth', weights_only=True)
    cfg = Config.fromstring(content['meta']['cfg'], '.py')
    assert cfg.default_scope == 'mmpretrain'
    assert cfg.model == Config.fromfile(tmp_path / 'r18.py').model
    model = MODELS.build(cfg.model).double().eval()
    model.load_state_dict(content['state_dict'], strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    weights = {name: value.double() for name, value in state_dict.items()}
    expected = OfficialNetwork(weights, FAMILY, 3)(x)
    assert (model(x, mode='tensor') - expected).abs().max() < 1e-9 * expected.abs().max()
    assert convert(source, tmp_path / 'r18.pth')[0] == 0  # converting again is allowed


class TestErrors:
    @pytest.fixture
    def error(self, tmp_path, convert):
        def run(source, target='new.pth'):
            before = sorted(tmp_path.iterdir())
            status, _, errors = convert(source, tmp_path / target)
            assert status == 1 and 'Traceback' not in errors
            assert sorted(tmp_path.iterdir()) == before
            (line,) = errors.splitlines()
            return line

        return run

    def save(self, tmp_path, content):
        torch.save(content, tmp_path / 'bad.pth.tar')
        return tmp_path / 'bad.pth.tar'

    def test_names(self, tmp_path, error, state_dict):
        wrong = {name: value for name, value in state_dict.items() if name != 'layer3.0.block_gate'}
        line = error(self.save(tmp_path, dict(state_dict=dict(wrong, classifier=torch.zeros(1)))))
        assert line.startswith('error: ') and '1 missing: layer3.0.block_gate; 1 unknown: classifier' in line

    def test_no_state_dict(self, tmp_path, error):
        path = self.save(tmp_path, dict(epoch=1, weights={}))
        assert error(path) == f'error: checkpoint {path} has no state_dict: its keys are epoch, weights'

    def test_no_file(self, tmp_path, error):
        assert error(tmp_path / 'nowhere.pth.tar') == f'error: checkpoint {tmp_path}/nowhere.pth.tar does not exist'

    def test_code(self, tmp_path, error):
        path = self.save(tmp_path, dict(state_dict={}, model=torch.nn.Conv2d(1, 1, 1)))
        assert 'carries code (torch.nn.modules.conv.Conv2d) and is refused' in error(path)

    def test_name_of_the_target(self, source, error):
        assert 'give a name that ends in .pth' in error(source, 'new.py')

    def test_a_config_of_that_name(self, tmp_path, source, error):
        (tmp_path / 'mine.py').write_text('a = 1\n')
        assert 'mine.py exists and is another config' in error(source, 'mine.pth')
        assert (tmp_path / 'mine.py').read_text() == 'a = 1\n'
