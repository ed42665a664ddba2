"""A single binary conv as one autograd function, which keeps only its input."""

from typing import Any

import torch
from torch import Tensor

from mmgroupnet.layers.branches import split
from mmgroupnet.layers.lean.interface import BinaryConv, ConvOperands, may_run_lean
from mmgroupnet.layers.lean.path import find_hooks, first_derivatives, report_hooks, wants_gradient
from mmgroupnet.layers.lean.sign_conv import SignConv
from mmgroupnet.layers.lean.unit import only_needed
from mmgroupnet.ops.passes import choose_passes
from mmgroupnet.ops.precision import autocast_dtype, wide, without_autocast


def can_run_conv(conv: BinaryConv, x: Tensor) -> bool:
    """Whether a binary conv runs lean on an input, see :mod:`mmgroupnet.layers.lean.path`."""
    if not wants_gradient([x, *conv.parameters()]) or not may_run_lean(conv):
        return False
    hooked = next((found for part in conv.bypassed_parts() if (found := find_hooks(part, conv))), None)
    if hooked is not None:
        report_hooks(conv, hooked, is_synchronised=False)
    return hooked is None


class _ConvFunction(torch.autograd.Function):
    """One binary conv, which keeps only its input."""

    @staticmethod
    def forward(ctx: Any, conv: BinaryConv, x: Tensor, *tensors: Any) -> Tensor:
        operands = ConvOperands(*tensors)
        out_dtype = autocast_dtype(x) or x.dtype
        ctx.sign_conv = SignConv(conv, conv.num_folded, choose_passes(x, operands.weight, conv))
        ctx.save_for_backward(x, *operands)
        with without_autocast(x.device):
            y = ctx.sign_conv.forward(ctx.sign_conv.passes.prepare(x), operands, observed=conv)
            if not ctx.sign_conv.geometry.merges:
                y = y.to(wide(out_dtype)).mul_(operands.scale.to(wide(out_dtype)).view(-1, 1, 1))
            return y.to(out_dtype)

    @staticmethod
    @first_derivatives
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        operands, sign_conv = ConvOperands(*tensors), ctx.sign_conv
        passes = sign_conv.passes
        _, needs_x, *needed = ctx.needs_input_grad
        prepared = passes.prepare(x)
        gradient = passes.prepare(gradient)
        branches = split(gradient, sign_conv.branches)
        computed = wide(gradient.dtype)
        scales = sign_conv.output_scale(operands).to(computed).view(-1, 1, 1).chunk(sign_conv.branches)

        def gradient_of(k: int, reuse: bool) -> Tensor:
            return branches[k] if sign_conv.geometry.merges else branches[k] * scales[k]

        with without_autocast(x.device):
            x_gradient, of_operands = sign_conv.backward(gradient_of, prepared, operands, None, needs_x, needed)
            if ConvOperands(*needed).scale and not sign_conv.geometry.merges:
                y = sign_conv.forward(prepared, operands)
                _, of_scale = passes.for_floats.gradient_sums(gradient, y, relu=False)
                of_weight, _, of_shift, of_merge = of_operands
                of_operands = [of_weight, of_scale, of_shift, of_merge]
        of_operands = only_needed(of_operands, needed, operands)
        return None, x_gradient.to(x.dtype) if needs_x else None, *of_operands


# torch.compile does not trace this function: its kernels take addresses, which traced tensors do not have.
@torch.compiler.disable
def run_conv(conv: BinaryConv, x: Tensor) -> Tensor:
    """A binary conv without its bias, lean; see :func:`can_run_conv`."""
    return _ConvFunction.apply(conv, x, *conv.operands())
