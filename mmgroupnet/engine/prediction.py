"""Predictions drawn on pictures, with the inferencer of the config's library."""

from pathlib import Path

from mmengine.config import Config
from mmengine.infer import BaseInferencer
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.checkpoints.packed import adopt_packed, check_device
from mmgroupnet.checkpoints.read import read_checkpoint
from mmgroupnet.engine.exported_model import adopt_exported, is_exported
from mmgroupnet.errors import UserError

_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(path: str | Path) -> list[str]:
    """Lists the pictures to predict on.

    Args:
        path: A picture, or a folder of pictures.

    Returns:
        The files, in alphabetical order.

    Raises:
        UserError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise UserError(f'{path} is neither a picture nor a folder')
    images = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not images:
        raise UserError(f'folder {path} holds no pictures ({", ".join(_SUFFIXES)})')
    return images


def _with_exported_model(inferencer: type[BaseInferencer]) -> type[BaseInferencer]:
    """The inferencer of mmdet or mmseg for a model without a checkpoint, whose file has the classes and the palette."""

    class ExportedModelInferencer(inferencer):
        def _load_weights_to_model(self, model: nn.Module, checkpoint: dict | None, cfg: Config) -> None:
            meta = dict(dataset_meta=model.dataset_metainfo) if model.dataset_metainfo else {}
            super()._load_weights_to_model(model, dict(state_dict={}, meta=meta), cfg)

    return ExportedModelInferencer


def _adopt(cfg: Config, checkpoint: str | Path, device: str | None) -> str | None:
    """Makes a config fit its checkpoint or .onnx file, and returns the device to compute on."""
    if is_exported(checkpoint):
        if Path(checkpoint).suffix != '.onnx':
            raise UserError(f'{checkpoint} holds predictions, no model: tools/test.py --show-dir DIR draws them')
        if device not in (None, 'cpu'):
            raise UserError(f'--device {device}: {checkpoint} runs on the CPU alone, give --device cpu')
        adopt_exported(cfg, checkpoint)
        return 'cpu'
    if adopt_packed(cfg, checkpoint):
        device = device or 'cpu'
        check_device(checkpoint, device)
    return device


def draw_on_pictures(
    cfg: Config,
    checkpoint: str | Path,
    images: list[str],
    out_dir: str | Path,
    score_thr: float = 0.3,
    device: str | None = None,
) -> Path:
    """Predicts on pictures and draws the result.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        checkpoint: The weights, a file of the disk, of a trained model or packed ones; or a .onnx file that was
            exported from them.
        images: The pictures.
        out_dir: Folder for the drawn pictures; it is made.
        score_thr: Detections below this score are not drawn. Default: 0.3.
        device: Where to compute, such as 'cpu' or 'cuda:0'. Default: a GPU if there is one and the weights are
            neither packed nor exported.

    Returns:
        The folder inside ``out_dir`` that holds the drawn pictures.

    Raises:
        UserError: If the checkpoint does not fit the config, or the config is of another library.
    """
    cfg = cfg.copy()
    device = _adopt(cfg, checkpoint, device)
    exported = is_exported(checkpoint)
    content = None if exported else read_checkpoint(checkpoint)
    weights = None if exported else str(checkpoint)
    out_dir = Path(out_dir)
    drawn = out_dir / 'vis'
    drawn.mkdir(parents=True, exist_ok=True)
    scope = cfg.get('default_scope')
    # The libraries are heavy and not all need to be installed: import the one that is asked for.
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer

        build = _with_exported_model(DetInferencer) if exported else DetInferencer
        inferencer = build(cfg, weights, device, show_progress=False)
        options = dict(out_dir=str(out_dir), pred_score_thr=score_thr)
    elif scope == 'mmseg':
        from mmseg.apis import MMSegInferencer

        build = _with_exported_model(MMSegInferencer) if exported else MMSegInferencer
        inferencer = build(cfg, weights, device=device)
        options = dict(out_dir=str(out_dir))
    elif scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(cfg, weights or False, device)
        if exported:
            inferencer.classes = inferencer.model.dataset_metainfo.get('classes', inferencer.classes)
        options = dict(show_dir=str(drawn))
    else:
        raise UserError(f'default_scope={scope!r}: pictures can be drawn for configs of mmdet, mmseg and mmpretrain')
    if exported:
        inferencer.model.check_task(scope)
    else:
        check_state_dict(inferencer.model, content, str(checkpoint))
    inferencer(images, **options)
    return drawn
