"""Batch norms in evaluation mode as a scale and a shift per channel."""

from torch import Tensor, nn

from mmgroupnet.layers.lean.batch_norm import is_batch_norm


class NotPackable(Exception):
    """A layer cannot be packed; the message says why."""


def can_fold(norm: nn.Module) -> bool:
    """Whether a norm is a scale and a shift per channel: a batch norm with running statistics."""
    return is_batch_norm(norm) and norm.running_mean is not None


def fold_norm(norm: nn.Module) -> dict[str, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, ``scale * x + shift``.

    Raises:
        NotPackable: If it is not such a norm.
    """
    if not can_fold(norm):
        raise NotPackable(f'{type(norm).__name__} is no batch norm with running statistics')
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return dict(norm_scale=scale, norm_shift=shift)
