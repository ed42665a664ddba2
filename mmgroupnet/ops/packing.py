"""Packs signs into bits, the storage format of weights."""

import torch
from torch import Tensor

from mmgroupnet.ops import kernels

_BIT_VALUES = (1, 2, 4, 8, 16, 32, 64, 128)


def pack_bits(negative: Tensor) -> Tensor:
    """Packs rows of booleans into bytes, least significant bit first, ``(R, B)`` to ``(R, ceil(B / 8))`` uint8; unused
    bits are 0."""
    rows, bits = negative.shape
    num_bytes = -(-bits // 8)
    padded = torch.zeros(rows, num_bytes * 8, dtype=torch.uint8, device=negative.device)
    padded[:, :bits] = negative
    values = torch.tensor(_BIT_VALUES, dtype=torch.uint8, device=negative.device)
    return (padded.view(rows, num_bytes, 8) * values).sum(dim=2, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack_bits`, ``(R, ceil(bits / 8))`` to booleans ``(R, bits)``."""
    values = torch.tensor(_BIT_VALUES, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(2) & values).ne(0).flatten(1)[:, :bits]


def pack_weight(weight: Tensor) -> Tensor:
    """Packs the signs of weights ``(rows, C_in/groups, kh, kw)``, 0 for +1 (zeros included) and 1 for -1, in the order
    (kh, kw, channel); see :func:`pack_bits`."""
    library = kernels.library() if weight.dtype == torch.float32 and weight.device.type == 'cpu' else None
    if library is None:
        return pack_bits(~(weight >= 0).permute(0, 2, 3, 1).flatten(1))
    rows, channels, height, width = weight.shape
    bits = torch.empty(rows, -(-channels * height * width // 8), dtype=torch.uint8)
    weight = weight.detach().contiguous()
    threads = torch.get_num_threads()
    library.mmg_pack_weights(weight.data_ptr(), rows, channels, height * width, bits.data_ptr(), threads)
    return bits


def unpack_weight(packed: Tensor, channels: int, kernel_size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`pack_weight`: weights of -1 and +1, float ``(rows, channels, kh, kw)``."""
    height, width = kernel_size
    negative = unpack_bits(packed, channels * height * width)
    return (1 - 2 * negative.float()).view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()
