"""Tiny trained models of mmdet, mmseg and mmpretrain, in all kinds of files that the tools write."""

import re
from pathlib import Path

from mmengine.config import Config

from mmgroupnet.checkpoints.packed import read_packed
from mmgroupnet.engine.configs import load_config, resolve_type
from mmgroupnet.engine.packing import pack_checkpoint
from mmgroupnet.engine.training import run_training
from tests.test_engine.test_libraries import BACKBONE, CLASSIFIER, SEGMENTOR, write_pictures
from tests.tiny_run import write_tiny_run

STOCK_BACKBONE = dict(_delete_=True, type='ResNet', depth=18, base_channels=8)
POLICY = [
    dict(become='keep', names='backbone.conv1'),
    dict(become='groupwise', types='BasicBlock', names='backbone', num_bases=2),
]
KINDS = ('trained', 'packed', 'binarised', 'binarised, packed', 'dumped', 'pure Python', 'pure Python, packed')


def as_pure_python(cfg: Config) -> str:
    """A config in mmengine's pure Python style: classes in place of their names."""
    imports = []

    def import_class(match: re.Match) -> str:
        found = resolve_type(match[1], cfg.default_scope)
        if found is None:  # such as nms, which mmcv looks up by itself
            return match[0]
        imports.append(f'from {found.__module__} import {found.__name__}')
        return f'type={found.__name__}'

    text = re.sub(r"type='([^']+)'", import_class, cfg.pretty_text)
    return '\n'.join([*dict.fromkeys(imports), text])


def _configs(folder: Path, library: str) -> tuple[Config, Config, Path]:
    """A config with our parts, one with a stock backbone, and a picture of their data."""
    folder.mkdir()
    if library == 'mmdet':
        cfg = Config.fromfile(write_tiny_run(folder))
        picture = folder / 'data/images/8.png'
        out_indices = (1, 2)
    else:
        write_pictures(folder)
        text = dict(mmseg=SEGMENTOR, mmpretrain=CLASSIFIER)[library]
        cfg = Config.fromstring(f'data_root = {str(folder)!r}\n{BACKBONE}{text}', '.py')
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        cfg.test_pipeline = cfg.dataset.pipeline  # mmseg's inference_model reads it
        picture = folder / 'images/light/4.png'
        out_indices = (3,)
    # No evaluation: only the files are needed.
    for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg.pop(name, None)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    stock = Config(cfg.to_dict())
    stock.merge_from_dict(dict(model=dict(backbone=dict(STOCK_BACKBONE, out_indices=out_indices))))
    return cfg, stock, picture


def _packed(config: Path, checkpoint: Path) -> tuple[Path, Path]:
    """Packs a trained checkpoint; returns its config file and the packed checkpoint."""
    packed, packed_config = checkpoint.with_name('packed.pth'), checkpoint.with_name('packed.py')
    pack_checkpoint(load_config(str(config)), checkpoint, packed)
    packed_config.write_text(read_packed(packed)['meta']['cfg'])
    return packed_config, packed


def write_files(folder: Path, library: str) -> list[dict]:
    """Trains the models of a library for one epoch and writes all files.

    Args:
        folder: The folder for the files.
        library: 'mmdet', 'mmseg' or 'mmpretrain'.

    Returns:
        For each file ``library``, ``kind`` (one of ``KINDS``), ``config`` and ``checkpoint``, and a ``picture`` of its
        data.
    """
    here = folder / library
    cfg, stock, picture = _configs(here, library)
    files = []

    def add(kind: str, config: Path, checkpoint: Path) -> None:
        entry = dict(library=library, kind=kind, config=config, checkpoint=checkpoint, picture=picture)
        files.append({key: str(value) for key, value in entry.items()})

    def train(name: str, text: str, policy: list[dict] | None = None) -> tuple[Path, Path]:
        config = here / f'{name}.py'
        config.write_text(text)
        loaded = load_config(str(config))
        work = dict(work_dir=str(here / name), launcher='none', experiment_name=f'{library}-{name}-{folder.name}')
        loaded.merge_from_dict(work)
        run_training(loaded, policy=policy)
        return config, here / name / 'epoch_1.pth'

    config, checkpoint = train('ours', cfg.pretty_text)
    add('trained', config, checkpoint)
    add('dumped', checkpoint.with_name('ours.py'), checkpoint)
    add('packed', *_packed(config, checkpoint))
    _, checkpoint = train('stock', stock.pretty_text, POLICY)
    config = checkpoint.with_name('stock.py')
    add('binarised', config, checkpoint)
    add('binarised, packed', *_packed(config, checkpoint))
    config, checkpoint = train('pure', as_pure_python(cfg))
    add('pure Python', checkpoint.with_name('pure.py'), checkpoint)
    add('pure Python, packed', *_packed(config, checkpoint))
    return files
