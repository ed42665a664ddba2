"""A test run of the command line, with the options that each OpenMMLab library spells in its own way."""

from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from mmgroupnet.checkpoints.packed import adopt_packed, check_device
from mmgroupnet.checkpoints.read import is_local
from mmgroupnet.engine.checks import check_built_parts
from mmgroupnet.engine.data import check_data, innermost_datasets
from mmgroupnet.engine.exported_model import adopt_exported, is_exported
from mmgroupnet.engine.launch import build_runner
from mmgroupnet.errors import UserError

_VISUALIZATION_HOOKS = dict(
    mmdet='mmdet.DetVisualizationHook', mmseg='mmseg.SegVisualizationHook', mmpretrain='mmpretrain.VisualizationHook'
)


def _library(cfg: Config, option: str) -> str:
    scope = cfg.get('default_scope')
    if scope not in _VISUALIZATION_HOOKS:
        raise UserError(
            f'{option} needs a config whose default_scope is one of {", ".join(_VISUALIZATION_HOOKS)}, not {scope!r}'
        )
    return scope


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turns on the drawing of predictions.

    Args:
        cfg: The config, changed in place.
        show: Open a window.
        show_dir: Folder for the pictures. None: none are written.
        wait_time: Seconds that a window stays.
    """
    library = _library(cfg, '--show and --show-dir')
    if 'visualization' not in cfg.default_hooks:
        cfg.default_hooks.visualization = dict(type=_VISUALIZATION_HOOKS[library])
    hook = cfg.default_hooks.visualization
    # Every picture; the libraries' defaults leave out many.
    hook.update(show=show, wait_time=wait_time, interval=1)
    hook['enable' if library == 'mmpretrain' else 'draw'] = True
    if not show_dir:
        return
    # mmdet puts a relative folder into the folder of the run's logs, the others into the current one.
    folder = str(Path(show_dir).absolute())
    if library == 'mmseg':
        cfg.visualizer.save_dir = folder
    else:
        hook['out_dir' if library == 'mmpretrain' else 'test_out_dir'] = folder


def _default_tta(cfg: Config, library: str) -> tuple[dict, list]:
    """Model and pipeline that predict on the image and on its mirror image."""
    pipeline = deepcopy(next(innermost_datasets(cfg.test_dataloader.dataset))['pipeline'])
    pack = pipeline[-1]
    if library == 'mmdet':
        model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
        # Boxes of the mirror image are mirrored back, which needs to know of the flip.
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        pack = dict(type='mmdet.PackDetInputs', meta_keys=keys)
        flip = 'mmdet.RandomFlip'
    else:
        model = dict(type='mmseg.SegTTAModel' if library == 'mmseg' else 'mmpretrain.AverageClsScoreTTA')
        flip = 'RandomFlip'
    # mmseg compares with the ground truth of the first one.
    flips = [dict(type=flip, prob=0.0), dict(type=flip, prob=1.0)]
    return model, [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]


def augment_test(cfg: Config) -> None:
    """Turns on test-time augmentation.

    By the config's own ``tta_model`` and ``tta_pipeline``; with the mirror image for what it lacks of them.

    Args:
        cfg: The config, changed in place.

    Raises:
        UserError: If the config is of another library.
    """
    library = _library(cfg, '--tta')
    model, pipeline = cfg.get('tta_model'), cfg.get('tta_pipeline')
    if model is None or pipeline is None:
        default_model, default_pipeline = _default_tta(cfg, library)
        model, pipeline = model or default_model, pipeline or default_pipeline
    cfg.model = ConfigDict(**model, module=cfg.model)
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = pipeline


def write_predictions(runner: Runner, out: str) -> None:
    """Adds a writer of all predictions to a test.

    Args:
        runner: The runner.
        out: The pickle file.

    Raises:
        UserError: If it does not end in .pkl or .pickle.
    """
    if not out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {out}: predictions are written as a pickle, give a name that ends in .pkl')
    if runner.cfg.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults  # Compresses masks.

        metric = DumpDetResults(out_file_path=out)
    else:
        metric = DumpResults(out_file_path=out)
    runner.test_evaluator.metrics.append(metric)


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
        checkpoint: The checkpoint, of a trained model or a packed one; or a .onnx file that was exported from one, or a
            .npz file of what that predicted.
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
    exported = is_exported(checkpoint)
    if exported and tta:
        raise UserError(f'--tta: {checkpoint} answers for pictures as they are, evaluate its checkpoint')
    if exported:
        adopt_exported(cfg, checkpoint)
    else:
        if is_local(checkpoint) and adopt_packed(cfg, checkpoint):
            check_device(checkpoint)
        cfg.load_from = checkpoint
    check_data(cfg, ['test_dataloader'])
    cfg.resume = False
    if show or show_dir:
        if tta and cfg.get('default_scope') == 'mmpretrain':
            raise UserError('mmpretrain cannot draw predictions of --tta: leave out --show and --show-dir')
        draw_predictions(cfg, show, show_dir, wait_time)
    if tta:
        augment_test(cfg)
    runner = build_runner(cfg)
    check_built_parts(runner, ['test'])
    if exported:
        runner.model.check_task(cfg.get('default_scope'))
        runner.model.check_dataset(runner.test_dataloader.dataset)
    if out:
        write_predictions(runner, out)
    return runner.test()
