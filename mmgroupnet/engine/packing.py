"""Packs a trained checkpoint into a file."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.checkpoints.packed import packed_config, save_packed
from mmgroupnet.checkpoints.read import first_meta, is_packed, read_checkpoint
from mmgroupnet.deploy import PackedLayer, pack_and_report
from mmgroupnet.engine.models import build_model, load_model
from mmgroupnet.errors import UserError

# Number of layers that an error lists; it only counts further ones.
_LISTED_LAYERS = 3


def load_float(cfg: Config, checkpoint: Path) -> tuple[nn.Module, dict | None]:
    """Builds the model of a config with the weights of its checkpoint, which is not packed.

    Args:
        cfg: A checked config of mmdet, mmseg or mmpretrain.
        checkpoint: A local file with the weights.

    Returns:
        The model, and the checkpoint's ``dataset_meta``, or None if it has none.

    Raises:
        UserError: If the checkpoint does not fit the config, is packed, or holds weights that are not finite.
    """
    if is_packed(read_checkpoint(checkpoint)):
        raise UserError(f'checkpoint {checkpoint} is packed already')
    model, content = load_model(cfg, checkpoint)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f'checkpoint {checkpoint}: {name} is not finite, give an earlier checkpoint')
    return model, first_meta(content.get('meta', {}).get('dataset_meta')) or None


def _listing(layers: list[PackedLayer]) -> str:
    listed = '; '.join(f'{layer.name}: {layer.problem}' for layer in layers[:_LISTED_LAYERS])
    return listed + (f'; and {len(layers) - _LISTED_LAYERS} more' if len(layers) > _LISTED_LAYERS else '')


def pack_loaded(model: nn.Module, strict: bool) -> tuple[nn.Module, list[PackedLayer]]:
    """Packs a trained model.

    Args:
        model: The model; it is not changed.
        strict: Raises if a binary layer cannot be packed, instead of leaving it float.

    Returns:
        The packed model, and the result for every binary layer.

    Raises:
        UserError: If it has no binary layers, or no layer (with ``strict``: not every layer) can be packed.
    """
    packed, layers = pack_and_report(model)
    unpacked = [layer for layer in layers if layer.problem is not None]
    if len(unpacked) == len(layers):
        raise UserError(f'none of the {len(layers)} binary layers can be packed ({_listing(unpacked)})')
    if strict and unpacked:
        raise UserError(f'--strict: {len(unpacked)} of {len(layers)} binary layers stay float ({_listing(unpacked)})')
    return packed, layers


def pack_checkpoint(cfg: Config, checkpoint: str | Path, out: str | Path, strict: bool = False) -> list[PackedLayer]:
    """Packs the checkpoint of a trained model into a file.

    Args:
        cfg: A checked config of mmdet, mmseg or mmpretrain.
        checkpoint: A local file with the weights.
        out: The packed checkpoint to write.
        strict: Raises if a binary layer cannot be packed, instead of leaving it float. Default: False.

    Returns:
        The result for every binary layer.

    Raises:
        UserError: If the checkpoint does not fit the config, no layer (with ``strict``: not every layer) can be packed,
            or the file cannot be written.
    """
    checkpoint, out = Path(checkpoint).expanduser(), Path(out).expanduser()
    if out.resolve() == checkpoint.resolve():
        raise UserError(f'--out {out} is the checkpoint itself: its weights could not be trained further, give another')
    cfg = packed_config(cfg)
    original = Config({**cfg.to_dict(), 'model': cfg.model.model})
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model, dataset_meta = load_float(original, checkpoint)
        packed, layers = pack_loaded(model, strict)
        # Loading the file builds the model again, which has to have the same tensors.
        check_state_dict(build_model(cfg), packed.state_dict(), str(out))
    save_packed(packed, [layer.name for layer in layers if layer.problem is None], cfg, out, dataset_meta)
    return layers


def describe_layers(layers: list[PackedLayer]) -> str:
    """A table of the results for the binary layers, with a line of totals."""
    rows = [
        (layer.name, layer.problem or 'packed', f'{layer.bytes_before:,}', f'{layer.bytes_after:,}') for layer in layers
    ]
    packed = sum(layer.problem is None for layer in layers)
    before, after = (sum(getattr(layer, name) for layer in layers) for name in ('bytes_before', 'bytes_after'))
    rows = [
        ('layer', 'result', 'bytes before', 'bytes after'),
        *rows,
        ('total', f'{packed} of {len(layers)} packed', f'{before:,}', f'{after:,}'),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return '\n'.join(
        f'{name:<{widths[0]}}  {result:<{widths[1]}}  {before:>{widths[2]}}  {after:>{widths[3]}}'
        for name, result, before, after in rows
    )
