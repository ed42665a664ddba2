"""Counts the kernels that a GPU would launch, without a GPU: ATen calls that compute something, and Triton kernels."""

from collections import Counter
from collections.abc import Callable
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Calls that launch nothing: they only allocate memory or make a view.
_SILENT = ('empty', 'detach', '_unsafe_view', 'alias', 'lift_fresh', 'view', 'split', 'chunk', 'unbind')


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if not function.is_view and not any(part in name for part in _SILENT):
            # Two launches: the gradients of the input and of the weight.
            self.found[name] += 2 if name == 'convolution_backward' else 1
        return function(*arguments, **keywords or {})


def count_launches(run: Callable[[], object]) -> Counter[str]:
    """Numbers of launches by name. A convolution counts as one and its backward pass as two, cuDNN's minimum."""
    try:
        from mmgroupnet.ops.passes import triton_launch
    except ImportError:
        with _Calls() as calls:
            run()
        return calls.found
    launched: Counter[str] = Counter()
    launch = triton_launch.launch

    def note(kernel: object, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
        launched[kernel.__name__] += 1
        # The ATen calls of Triton's interpreter are not launches.
        with torch.utils._python_dispatch._disable_current_modes():
            launch(kernel, grid, *arguments, **constants)

    with mock.patch.object(triton_launch, 'launch', note), _Calls() as calls:
        run()
    return calls.found + launched
