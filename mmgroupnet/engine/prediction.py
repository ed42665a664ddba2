"""Predictions drawn on pictures, with the inferencer of the config's library."""

from pathlib import Path

from mmengine.config import Config

from mmgroupnet.engine.checkpoint import check_state_dict, read_checkpoint
from mmgroupnet.engine.errors import UserError
from mmgroupnet.engine.packed_checkpoint import adopt_packed, check_device

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
        checkpoint: The weights, a file of the disk, of a trained model or packed ones.
        images: The pictures.
        out_dir: Folder for the drawn pictures; it is made.
        score_thr: Detections below this score are not drawn. Default: 0.3.
        device: Where to compute, such as 'cpu' or 'cuda:0'. Default: a GPU if there is one and the weights are
            not packed.

    Returns:
        The folder inside ``out_dir`` that holds the drawn pictures.

    Raises:
        UserError: If the checkpoint does not fit the config, or the config is of another library.
    """
    cfg = cfg.copy()
    if adopt_packed(cfg, checkpoint):
        device = device or 'cpu'
        check_device(checkpoint, device)
    content = read_checkpoint(checkpoint)
    out_dir = Path(out_dir)
    drawn = out_dir / 'vis'
    drawn.mkdir(parents=True, exist_ok=True)
    scope = cfg.get('default_scope')
    # The libraries are heavy and not all need to be installed: import the one that is asked for.
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, str(checkpoint), device, show_progress=False)
        options = dict(out_dir=str(out_dir), pred_score_thr=score_thr)
    elif scope == 'mmseg':
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(cfg, str(checkpoint), device=device)
        options = dict(out_dir=str(out_dir))
    elif scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(cfg, str(checkpoint), device)
        options = dict(show_dir=str(drawn))
    else:
        raise UserError(f'default_scope={scope!r}: pictures can be drawn for configs of mmdet, mmseg and mmpretrain')
    check_state_dict(inferencer.model, content, str(checkpoint))
    inferencer(images, **options)
    return drawn
