"""Hypothesis strategies that several tests share."""

import torch
from hypothesis import strategies as st
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def float_tensors(dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES) -> st.SearchStrategy[Tensor]:
    """Vectors of finite floats between -4 and 4, often with zeros of both signs and with exactly -1 and +1."""
    values = st.lists(st.floats(-4, 4, width=16) | st.sampled_from([-1.0, -0.0, 0.0, 1.0]), min_size=1, max_size=24)
    return st.builds(lambda entries, dtype: torch.tensor(entries, dtype=dtype), values, st.sampled_from(dtypes))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of torch's generators, for tensors that are too large to be drawn value by value."""
    return st.integers(0, 2**31 - 1)
