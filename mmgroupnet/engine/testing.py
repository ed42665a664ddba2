"""A test run of the command line, with common names for options that OpenMMLab's libraries name differently."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import mmengine.device.utils
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmgroupnet.checkpoints.packed import adopt_packed
from mmgroupnet.checkpoints.read import is_local
from mmgroupnet.engine.checks import check_built_parts
from mmgroupnet.engine.data import check_data, innermost_datasets
from mmgroupnet.engine.exported_model import adopt_exported, is_exported
from mmgroupnet.engine.launch import build_runner
from mmgroupnet.engine.libraries import LIBRARIES, library_of, required_library
from mmgroupnet.engine.pictures import common_folder, image_folder
from mmgroupnet.errors import UserError
from mmgroupnet.model_configs import type_name

# Test-time augmentation: the libraries' own models, and ours that replace them.
_AUGMENTED = dict(
    DetTTAModel='mmgroupnet.AugmentedDetector',
    SegTTAModel='mmgroupnet.AugmentedSegmentor',
    AverageClsScoreTTA='mmgroupnet.AugmentedClassifier',
)
_DEFAULT_AUGMENTED = dict(zip(LIBRARIES, _AUGMENTED.values(), strict=True))
# The meta keys that are needed to flip predictions back.
_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def adopt_validation(cfg: Config) -> None:
    """Makes a config without test data evaluate its validation data.

    Args:
        cfg: The config, changed in place.

    Raises:
        UserError: If it has neither, or no evaluator.
    """
    if not cfg.get('test_dataloader'):
        if not cfg.get('val_dataloader'):
            raise UserError('the config has neither a test_dataloader nor a val_dataloader: give it one')
        print_log('The config has no test data: its validation data is evaluated', 'current', logging.WARNING)
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.get('val_evaluator')
    if cfg.get('test_evaluator') is None:  # [] to write only predictions, with --out.
        raise UserError('the config has test data and no test_evaluator: give its metrics, test_evaluator=dict(...)')
    if cfg.get('test_cfg') is None:
        cfg.test_cfg = {}


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turns on the drawing of predictions.

    Args:
        cfg: The config, changed in place.
        show: Open a window.
        show_dir: Folder for the pictures; None to write none.
        wait_time: Seconds that a window stays.
    """
    library = required_library(cfg, '--show and --show-dir')
    folders = [image_folder(dataset) for dataset in innermost_datasets(cfg.test_dataloader.dataset)]
    hook = dict(
        type='mmgroupnet.DrawPredictionsHook',
        library=library,
        out_dir=show_dir,
        root=common_folder(folders),
        show=show,
        wait_time=wait_time,
    )
    # The library's own hook would draw the same pictures again, and would not keep their names apart.
    own = (cfg.get('default_hooks') or {}).pop('visualization', None) or {}
    hook.update({key: own[key] for key in ('score_thr', 'backend_args') if own.get(key) is not None})
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def _default_tta(cfg: Config, library: str) -> tuple[ConfigDict, list]:
    """Model and pipeline that predict on the image and on its mirrored copy."""
    pipeline = deepcopy(next(innermost_datasets(cfg.test_dataloader.dataset))['pipeline'])
    pack = pipeline[-1]
    if library == 'mmdet' or 'meta_keys' in pack:
        pack['meta_keys'] = tuple(dict.fromkeys((*pack.get('meta_keys', ()), *_META_KEYS)))
    flip = 'mmdet.RandomFlip' if library == 'mmdet' else 'RandomFlip'
    # mmseg compares with the ground truth of the first augmentation.
    flips = [dict(type=flip, prob=0.0), dict(type=flip, prob=1.0)]
    pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [pack]])
    return ConfigDict(type=_DEFAULT_AUGMENTED[library]), pipeline


def augment_test(cfg: Config) -> None:
    """Turns on test-time augmentation.

    It uses the config's own ``tta_model`` and ``tta_pipeline``, or ones that add the mirrored image if the config lacks
    them.

    Args:
        cfg: The config, changed in place.

    Raises:
        UserError: If the config is of another library.
    """
    library = required_library(cfg, '--tta')
    model: Any = cfg.get('tta_model')
    pipeline = cfg.get('tta_pipeline')
    if model is None or pipeline is None:
        default_model, default_pipeline = _default_tta(cfg, library)
        model, pipeline = model or default_model, pipeline or default_pipeline
    model = deepcopy(model)  # Unlike dict(model), it can be written into the log even if types are classes.
    if type_name(model) in _AUGMENTED:
        model.type = _AUGMENTED[type_name(model)]
    model.module = cfg.model
    cfg.model = model
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = pipeline


def write_predictions(runner: Runner, out: str) -> None:
    """Makes a test write all predictions to a file.

    Args:
        runner: The runner.
        out: The pickle file.

    Raises:
        UserError: If it does not end in .pkl or .pickle.
    """
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {out}: predictions are written as a pickle, give a name that ends in .pkl')
    if library_of(runner.cfg) == 'mmdet':
        from mmdet.evaluation import DumpDetResults  # It compresses masks.

        metric = DumpDetResults(out_file_path=out)
    else:
        metric = DumpResults(out_file_path=out)
    runner.test_evaluator.metrics.append(metric)


@contextmanager
def runs_on_cpu(cfg: Config, path: str) -> Iterator[None]:
    """Makes mmengine's Runner take the CPU, also on a host with a GPU: packed checkpoints run only there.

    Args:
        cfg: The config.
        path: The packed checkpoint, for the error.

    Raises:
        UserError: If several processes are requested, for which the Runner would take GPUs.
    """
    device = get_device()
    if device != 'cpu' and cfg.get('launcher', 'none') != 'none':
        raise UserError(
            f'--launcher {cfg.launcher}: packed checkpoint {path} runs only on the CPU, leave the launcher out'
        )
    try:
        mmengine.device.utils.DEVICE = 'cpu'  # the value that get_device() returns to the Runner
        yield
    finally:
        mmengine.device.utils.DEVICE = device


def run_test(
    cfg: Config,
    checkpoint: str,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
) -> dict:
    """Checks what can be checked beforehand, then evaluates a checkpoint, an exported model, or predictions.

    Args:
        cfg: A checked config with ``work_dir`` and ``launcher``; changed in place.
        checkpoint: The checkpoint of a trained or packed model, an .onnx file that was exported from one, or an .npz
            file with its predictions.
        out: Pickle file for all predictions. Default: None.
        show: Show every picture with its predictions. Default: False.
        show_dir: Folder for pictures with predictions. Default: None.
        wait_time: Seconds that a shown picture stays. Default: 2.
        tta: Test-time augmentation. Default: False.

    Returns:
        The metrics by name.

    Raises:
        UserError: If an option does not fit the config, data is missing, or the checkpoint does not fit.
    """
    exported, is_packed, library = is_exported(checkpoint), False, library_of(cfg)
    if exported and tta:
        raise UserError(f'--tta: {checkpoint} cannot predict on augmented pictures, evaluate its checkpoint')
    adopt_validation(cfg)
    if show or show_dir:
        draw_predictions(cfg, show, show_dir, wait_time)
    if exported:
        adopt_exported(cfg, checkpoint)
    else:
        is_packed = is_local(checkpoint) and adopt_packed(cfg, checkpoint)
        cfg.load_from = checkpoint
    check_data(cfg, ['test_dataloader'])
    cfg.resume = False
    if tta:
        augment_test(cfg)
    with runs_on_cpu(cfg, checkpoint) if is_packed else nullcontext():
        runner = build_runner(cfg)
        check_built_parts(runner, ['test'])
        if exported:
            runner.model.check_task(library)
            runner.model.check_dataset(runner.test_dataloader.dataset)
        if out:
            write_predictions(runner, out)
        return runner.test()
