"""``--binarize`` from the command line to packed bits, and tools/analysis_tools/get_complexity.py."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.binarize_option import binarize_config, load_policy
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.packing import pack_checkpoint
from mmgroupnet.engine.pictures import find_images
from mmgroupnet.engine.prediction import draw_on_pictures
from mmgroupnet.engine.testing import run_test
from mmgroupnet.errors import UserError
from tests.test_converters.test_binarized_model import BACKBONE, POLICY
from tests.test_tools.test_tools import run_tool
from tests.tiny_run import write_tiny_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder with a config of stock parts, a policy, and the results of training one epoch with this policy."""
    folder = tmp_path_factory.mktemp('binarize')
    text = write_tiny_run(folder).read_text()
    text += f"""
model["backbone"] = {BACKBONE}
model["neck"] = dict(type="FPN", in_channels=[16, 32], out_channels=8, num_outs=2)
"""
    (folder / 'stock.py').write_text(text)
    (folder / 'policy.py').write_text(f'policy = {POLICY}\n')
    done = run_tool(
        'train.py', 'stock.py', '--binarize', 'policy.py', '--cfg-options', 'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1', cwd=folder,
    )  # fmt: skip
    (folder / 'log.txt').write_text(done.stdout + done.stderr)
    return folder


WORK = 'work_dirs/stock_policy'


def dumped(folder) -> Config:
    cfg = load_config(str(folder / WORK / 'stock.py'))
    cfg.merge_from_dict(dict(work_dir=str(folder / 'again'), launcher='none', experiment_name=folder.name))
    check_arguments(cfg)
    return cfg


def test_the_report_comes_before_training(folder):
    log = (folder / 'log.txt').read_text()
    assert log.index('policy[2] groupwise K=2: 6 blocks') < log.index('Epoch(train)')
    assert re.search(r'^backbone\.layer1 +8 +0 ', log, re.MULTILINE)
    assert 'tensors come from the float model' in log and ' 0 of the float model have no place: none' in log


def test_the_dumped_config_is_complete(folder):
    cfg = dumped(folder)
    assert cfg.model.type == 'mmgroupnet.Binarized' and cfg.to_dict()['model']['policy'] == POLICY
    assert [hook.type for hook in cfg.custom_hooks][0] == 'mmgroupnet.BinaryStatisticsHook'
    assert (folder / WORK / 'binary_statistics.jsonl').exists()
    metrics = run_test(cfg, str(folder / WORK / 'epoch_1.pth'))
    assert 0 <= metrics['coco/bbox_mAP'] <= 1


def test_packing_and_predicting(folder):
    packed = folder / 'packed.pth'
    layers = pack_checkpoint(dumped(folder), folder / WORK / 'epoch_1.pth', packed, strict=True)
    assert all(layer.problem is None for layer in layers) and len(layers) > 30
    cfg = dumped(folder)
    cfg.work_dir = str(folder / 'packed')
    expected = run_test(dumped(folder), str(folder / WORK / 'epoch_1.pth'))
    assert run_test(cfg, str(packed))['coco/bbox_mAP'] == pytest.approx(expected['coco/bbox_mAP'], abs=0.01)
    images = find_images(folder / 'data/images')[:2]
    drawn = draw_on_pictures(dumped(folder), packed, images, folder / 'drawn', device='cpu')
    assert len(list(drawn.iterdir())) == 2


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'policy .*policy.py does not exist'),
        ('model = dict()', r'policy .*policy.py does not define policy = \[...\]'),
        ("policy = [dict(become='keep', type='Linear')]", r"policy.py: policy\[0\]: a rule has no key 'type' \(did "),
    ],
)
def test_a_policy_that_is_wrong(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'policy.py').write_text(text)
    with pytest.raises(UserError, match=message):
        load_policy(str(tmp_path / 'policy.py'))


def test_a_policy_that_does_not_fit_is_one_line(folder):
    (folder / 'steam.py').write_text("policy = [dict(become='keep', names='steam'), dict(become='binary')]")
    done = run_tool('train.py', 'stock.py', '--binarize', 'steam.py', cwd=folder, check=False)
    assert done.returncode == 1
    message = "error: policy[0] (become='keep', names=['steam']) selects no layer of FCOS. Its modules: "
    assert done.stderr.splitlines()[-1].startswith(message)
    assert 'Traceback' not in done.stderr


def test_binarising_twice(folder):
    with pytest.raises(UserError, match=r"the config's model is dict\(type='mmgroupnet.Binarized', ...\)"):
        binarize_config(dumped(folder), POLICY)


class TestGetComplexity:
    @pytest.fixture
    def tool(self, monkeypatch, capsys, folder):
        path = ROOT / 'tools/analysis_tools/get_complexity.py'
        spec = importlib.util.spec_from_file_location('get_complexity', path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)

        def run(*arguments):
            monkeypatch.chdir(folder)
            monkeypatch.setattr(sys, 'argv', [str(path), *arguments])
            script.main()
            return capsys.readouterr().out

        return run

    def test_float_and_binary(self, tool):
        assert re.search(r'^total +0 +', tool('stock.py'), re.MULTILINE)
        out = tool(f'{WORK}/stock.py', '--shape', '32', '64')
        assert 'Input 32x64' in out and 'policy[0] keep: 1 layers (backbone.conv1)' in out

    def test_per_layer(self, tool):
        assert 'backbone.layer1.0.blocks.1.branches.0.conv2 ' in tool(f'{WORK}/stock.py', '--per-layer')


def test_a_binary_config_as_a_file(folder, tmp_path, monkeypatch, capsys):
    """tools/binarize.py writes the same config as ``--binarize`` in the work directory, except the run's settings."""
    words = [folder / 'stock.py', folder / 'policy.py', '--out', tmp_path / 'binary.py']
    monkeypatch.setattr('sys.argv', ['binarize.py', *map(str, words)])
    runpy.run_path(str(ROOT / 'tools/binarize.py'), run_name='__main__')
    printed = capsys.readouterr().out
    assert 'policy[2] groupwise K=2: 6 blocks' in printed
    assert re.search(r'^backbone\.layer1 +8 +0 ', printed, re.MULTILINE)
    assert printed.endswith(f'{tmp_path}/binary.py written\n')
    cfg, trained = load_config(str(tmp_path / 'binary.py')), load_config(str(folder / WORK / 'stock.py'))
    assert cfg.model.to_dict() == trained.model.to_dict() and cfg.custom_hooks == trained.custom_hooks
