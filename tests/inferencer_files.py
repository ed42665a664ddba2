"""Tiny trained models of mmdet, mmseg and mmpretrain in every kind of file that the tools write."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config

from mmgroupnet.checkpoints.packed import pack_checkpoint, read_packed
from mmgroupnet.engine.configs import load_config, resolve_type
from mmgroupnet.engine.training import run_training
from tests.test_engine.test_libraries import BACKBONE, CLASSIFIER, SEGMENTOR, write_pictures
from tests.tiny_run import write_tiny_run

STOCK_BACKBONE = dict(_delete_=True, type='ResNet', depth=18, base_channels=8)
POLICY = [
    dict(become='keep', names='backbone.conv1'),
    dict(become='groupwise', types='BasicBlock', names='backbone', num_bases=2),
]
KINDS = ('trained', 'packed', 'binarised', 'binarised, packed', 'dumped', 'pure Python', 'pure Python, packed')


@dataclass
class Files:
    """A config and the checkpoint that belongs to it.

    Args:
        library: 'mmdet', 'mmseg' or 'mmpretrain'.
        kind: One of ``KINDS``.
        config: The config's file.
        checkpoint: The checkpoint's file.
        picture: A picture of its data.
    """

    library: str
    kind: str
    config: str
    checkpoint: str
    picture: str


def as_pure_python(cfg: Config) -> str:
    """A config in the style of pure Python: classes in place of their names."""
    imports = []

    def import_class(match: re.Match) -> str:
        found = resolve_type(match[1], cfg.default_scope)
        if found is None:  # such as nms, which mmcv looks up by itself
            return match[0]
        imports.append(f'from {found.__module__} import {found.__name__}')
        return f'type={found.__name__}'

    text = re.sub(r"type='([^']+)'", import_class, cfg.pretty_text)
    return '\n'.join([*dict.fromkeys(imports), text])


def _configs(folder: Path) -> Iterator[tuple[str, Config, Config, str]]:
    """Of each library: its name, a config of our parts, one of stock parts, and a picture."""
    for library, text in (('mmdet', None), ('mmseg', SEGMENTOR), ('mmpretrain', CLASSIFIER)):
        here = folder / library
        here.mkdir()
        if text is None:
            cfg = Config.fromfile(write_tiny_run(here))
            picture = here / 'data/images/8.png'
            out_indices = (1, 2)
        else:
            write_pictures(here)
            cfg = Config.fromstring(f'data_root = {str(here)!r}\n{BACKBONE}{text}', '.py')
            cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
            cfg.test_pipeline = cfg.dataset.pipeline  # mmseg's inference_model looks for it
            picture = here / 'images/light/4.png'
            out_indices = (3,)
        # No evaluation: the files are what counts.
        for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
            cfg.pop(name, None)
        cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
        cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
        cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        stock = Config(cfg.to_dict())
        stock.merge_from_dict(dict(model=dict(backbone=dict(STOCK_BACKBONE, out_indices=out_indices))))
        yield library, cfg, stock, str(picture)


def _packed(config: Path, checkpoint: Path) -> tuple[Path, Path]:
    """The packed checkpoint of a trained one, and the file of its config."""
    packed, packed_config = checkpoint.with_name('packed.pth'), checkpoint.with_name('packed.py')
    pack_checkpoint(load_config(str(config)), checkpoint, packed)
    packed_config.write_text(read_packed(packed)['meta']['cfg'])
    return packed_config, packed


def write_files(folder: Path, libraries: tuple[str, ...] = ('mmdet', 'mmseg', 'mmpretrain')) -> list[dict]:
    """Trains the models for an epoch and writes all files.

    Args:
        folder: Takes them.
        libraries: For which libraries. Default: all three.

    Returns:
        The entries of :class:`Files`, as dicts.
    """
    files = []
    for library, cfg, stock, picture in _configs(folder):
        if library not in libraries:
            continue
        here = folder / library

        def add(kind: str, config: Path, checkpoint: Path, library: str = library, picture: str = picture) -> None:
            files.append(asdict(Files(library, kind, str(config), str(checkpoint), picture)))

        def train(name: str, text: str, policy: list[dict] | None = None, here: Path = here) -> tuple[Path, Path]:
            config = here / f'{name}.py'
            config.write_text(text)
            loaded = load_config(str(config))
            loaded.merge_from_dict(
                dict(work_dir=str(here / name), launcher='none', experiment_name=f'{here.name}-{name}')
            )
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
