"""Memory-lean autograd of a binary convolution: the same gradients as plain autograd's, a fraction of its memory.

Plain autograd keeps the signs as padded floats and copies of the binarised weights. Both can be recomputed from the
input and the latent weights, which are in memory anyway.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmgroupnet.layers.branches import share, split
from mmgroupnet.layers.lean.interface import BinaryConv, ConvOperands
from mmgroupnet.layers.lean.surrogates import surrogate_of
from mmgroupnet.layers.observers import Observed, notify
from mmgroupnet.ops.passes import BranchGradient, Passes, Surrogate, UnitGradients
from mmgroupnet.ops.precision import wide
from mmgroupnet.quantizers import binary_sign, has_state


class SignConv:
    """Forward and backward pass of a binary conv without autograd; its numbers and functions are read from the conv
    once.

    Args:
        conv: The conv.
        branches: Number of folded branches of its input: K for a conv that K branches share, otherwise the conv's own
            number.
        passes: The backend.
    """

    def __init__(self, conv: BinaryConv, branches: int, passes: Passes) -> None:
        self.shares_weights = branches != conv.num_folded
        self.geometry = conv.geometry(shares_weights=self.shares_weights)
        self.branches = branches
        self.surrogate = surrogate_of(conv.activation)
        # It may work per channel: its input has the channels of all branches.
        self.surrogate_has_state = has_state(conv.activation)
        # Merged bases with different scales and long sums give floats.
        self.gives_integers = not self.geometry.merges and self.geometry.sums_fit_int16
        self.passes = passes

    @staticmethod
    def operands(tensors: Sequence) -> ConvOperands:
        """Values of the conv's tensors by name."""
        return ConvOperands(*tensors)

    def output_scale(self, operands: ConvOperands) -> Tensor:
        """Scale of the output of :meth:`forward`, one value per row of the weights; 1 for merged bases, which are
        already scaled."""
        return torch.ones_like(operands.scale[: self.geometry.out_channels]) if self.geometry.merges else operands.scale

    def _shifted(self, x: Tensor, operands: ConvOperands) -> Tensor:
        """The input plus its shift."""
        if operands.shift is None:
            return x
        shift = operands.shift.detach().to(x.dtype)
        return x + (shift.repeat(self.branches) if self.shares_weights else shift).view(-1, 1, 1)

    def _bases(self, operands: ConvOperands) -> tuple[Tensor, Tensor]:
        """Signs of merged bases and their scales, ``(K, C_out, C_in/groups, kh, kw)`` and ``(K, C_out, 1, 1, 1)``."""
        num_bases = self.geometry.num_bases
        signs = binary_sign(operands.weight.detach()).unflatten(0, (num_bases, -1))
        return signs, operands.scale.detach().view(num_bases, -1, 1, 1, 1)

    def _merged(self, operands: ConvOperands) -> Tensor:
        """The merged weights, rounded as in plain training: rounding decides whether a sum that cancels passes a
        ReLU."""
        signs, scale = self._bases(operands)
        bases = signs * scale
        if operands.merge_scales is None:
            return bases.mean(0)
        return (bases * operands.merge_scales.detach().view(-1, 1, 1, 1, 1)).sum(0)

    def forward(self, x: Tensor, operands: ConvOperands, observed: Observed | None = None) -> Tensor:
        """``(N, K*C_in, H, W)`` to the integers ``(N, K*C_out, H', W')``, or to floats for merged bases.

        Args:
            x: The input, as the passes prepared it.
            operands: The conv's tensors.
            observed: The conv whose observer gets the signs. Default: None, no observer is called.
        """
        z = self._shifted(x, operands)
        if observed is not None and observed.sign_observer is not None:
            # A conv that branches share gets them as batch.
            positive = z >= 0
            notify(observed, share(lambda part: part, positive, self.branches) if self.shares_weights else positive)
        if self.geometry.merges:
            return self.passes.convolve_merged(z, self._merged(operands), self.geometry)
        return self.passes.convolve(z, operands.weight.detach(), self.geometry)

    def backward(
        self,
        gradient_of: BranchGradient,
        x: Tensor,
        operands: ConvOperands,
        residual: Tensor | None,
        needs_x: bool,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the input, plus ``residual``, and of the operands. The gradient of the scale of unmerged weights
        is None: the caller multiplies with the scale.

        Args:
            gradient_of: Returns the gradient of the output of :meth:`forward`.
            x: The input.
            operands: The conv's tensors.
            residual: Added to the gradient of the input.
            needs_x: Whether the input needs a gradient.
            needed: Which operands need a gradient.
        """
        geometry, z = self.geometry, self._shifted(x, operands)
        needs_weight, needs_scale, needs_shift, needs_merge = needed
        needs_x = needs_x or needs_shift
        residual = None if residual is None else self.passes.prepare(residual)
        # The gradient of a shift excludes the residual.
        added = residual if operands.shift is None else None
        z_gradient, weight_gradient = self.passes.unit_gradients(
            UnitGradients(
                geometry=geometry,
                branches=self.branches,
                shares_weights=self.shares_weights,
                gradient_of=gradient_of,
                x=z,
                weight=self._merged(operands) if geometry.merges else operands.weight.detach(),
                # The gradient of the signs is the scale times the gradient of the scaled signs; the latent weights get
                # the latter.
                scale=None if geometry.merges else operands.scale.detach(),
                residual=added,
                surrogate=self._surrogates(z) if needs_x else lambda k: None,
                needs_x=needs_x,
                needs_weight=needs_weight or (geometry.merges and (needs_scale or needs_merge)),
            )
        )
        of_shift = None
        if needs_shift:
            assert z_gradient is not None and operands.shift is not None
            # Image by image first: a sum in double precision would copy the whole map.
            sums = z_gradient.sum((2, 3), dtype=wide(z_gradient.dtype)).sum(0, dtype=torch.float64)
            of_shift = sums.view(-1, len(operands.shift)).sum(0).to(operands.shift.dtype)
        if z_gradient is not None and residual is not None and added is None:
            z_gradient = z_gradient + residual
        of_weight, of_scale, of_merge = self._operand_gradients(operands, weight_gradient)
        return z_gradient, [of_weight, of_scale, of_shift, of_merge]

    def _surrogates(self, z: Tensor) -> Callable[[int], Surrogate | None]:
        """The surrogate gradient of each branch; None for that of ``PolynomialSign``."""
        if self.surrogate is None or self.shares_weights or not self.surrogate_has_state:
            return lambda k: self.surrogate
        found = split(self.surrogate(z.to(wide(z.dtype))), self.branches)
        return lambda k: lambda x: found[k]

    def _operand_gradients(
        self, operands: ConvOperands, gradient: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of weight, scale and merge scales from the gradient of the weights' signs, or of the merged weights
        ``sum_k merge_scales[k] * scale[k] * sign(weight[k])``."""
        if gradient is None:
            return None, None, None
        if not self.geometry.merges:
            return gradient, None, None
        signs, scale = self._bases(operands)
        if operands.merge_scales is None:
            merge_scales = gradient.new_full((len(signs),), 1 / len(signs))
        else:
            merge_scales = operands.merge_scales.detach().to(gradient.dtype)
        of_weight = torch.cat([gradient * merge_scale for merge_scale in merge_scales])
        # The sum of gradient times signs for each base and channel.
        sums = torch.stack([(gradient * base).sum((1, 2, 3)) for base in signs])
        of_scale = (sums * merge_scales.view(-1, 1)).flatten()
        of_merge = (sums * scale.view_as(sums)).sum(1)
        return of_weight, of_scale, of_merge
