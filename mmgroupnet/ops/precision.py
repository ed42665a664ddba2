"""Dtypes of lean training: what autocast asks for, and what products and sums are computed in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products and sums of a dtype are computed: float32, or float64 where it is that."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would convolve in; None where it is off, and for float64, which it leaves alone."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off: passes have chosen their dtypes."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
