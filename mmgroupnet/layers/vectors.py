"""Vectors as the pixels of a map: the kernels compute a linear layer as a 1x1 convolution."""

from torch import Tensor


def as_map(x: Tensor) -> Tensor:
    """Views vectors ``(..., C)`` as the pixels of one channels_last map ``(1, C, P, 1)``, without a copy; without any
    vector, as no map, ``(0, C, 1, 1)``."""
    if not x.numel():
        return x.reshape(-1, x.shape[-1], 1, 1)
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def as_vectors(out: Tensor, like: Tensor) -> Tensor:
    """The pixels of a map ``(1, C', P, 1)`` as vectors ``(..., C')``, in the shape of the input vectors ``(...,
    C)``."""
    return out.permute(0, 2, 3, 1).reshape(*like.shape[:-1], out.shape[1])
