"""A copy of the project template works in its folder."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgroupnet.datasets import DIGIT_CLASSES, generate_digits
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.training import run_training
from mmgroupnet.layers import BinaryConv2d

TEMPLATE = Path(__file__).parents[2] / 'examples' / 'own_project'


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('examples') / 'project'
    shutil.copytree(TEMPLATE, folder)
    generate_digits(folder / 'data', 4, 2)
    return folder


def load(project: Path, name: str) -> Config:
    cfg = load_config(str(project / name))
    check_arguments(cfg)
    return cfg


def test_both_configs_see_the_same_data(project):
    binary, floating = load(project, 'binary.py'), load(project, 'float.py')
    for cfg in (binary, floating):
        assert cfg.model.bbox_head.num_classes == len(cfg.train_dataloader.dataset.metainfo.classes) == 10
        assert cfg.train_dataloader.dataset.metainfo.classes == DIGIT_CLASSES
    for key in ('train_dataloader', 'val_dataloader', 'test_evaluator', 'optim_wrapper', 'train_cfg'):
        assert binary[key] == floating[key]
    assert {binary.model[part].num_bases for part in ('backbone', 'neck', 'bbox_head')} == {3}


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'is_binary'), [('binary.py', True), ('float.py', False)])
def test_it_trains(project, name, is_binary, monkeypatch):
    monkeypatch.chdir(project)
    cfg = load(project, name)
    work_dir = f'work_dirs/{name}'
    options = dict(work_dir=work_dir, launcher='none', experiment_name=f'{project}/{name}')
    for loader in ('train_dataloader', 'val_dataloader'):
        options |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
    cfg.merge_from_dict({**options, 'train_cfg.max_epochs': 1})
    model = run_training(cfg, rehearse=False)
    assert any(isinstance(module, BinaryConv2d) for module in model.modules()) == is_binary
    assert (project / work_dir / 'epoch_1.pth').is_file()
