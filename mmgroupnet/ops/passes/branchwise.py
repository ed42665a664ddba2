"""The gradients of a convolution of signs, one branch at a time, so that recomputed tensors never exist for all
branches at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmgroupnet.ops.float_convolution import (
    SumsOverPadding,
    convolution_gradients,
    convolve_signs,
    signs_of,
    sums_over_padding,
)
from mmgroupnet.ops.geometry import UnitGeometry
from mmgroupnet.ops.passes.protocol import NormPasses, Surrogate, UnitGradients


class BranchwisePasses:
    """Base of backends that process one branch at a time.

    A subclass has ``dtype``, ``prepare`` and the three passes below, and may have a faster ``sums_over_padding``.
    """

    dtype: torch.dtype
    norms: NormPasses | None = None
    sums_over_padding: SumsOverPadding = staticmethod(sums_over_padding)

    def branch_signs(self, x: Tensor, k: int, branches: int) -> Tensor:
        """Signs of branch k, ``(N, C, H, W)``, in ``dtype``."""
        raise NotImplementedError

    def weight_signs(self, weight: Tensor) -> Tensor:
        """Signs of latent weights ``(C_out, C_in/groups, kh, kw)``, in ``dtype``."""
        raise NotImplementedError

    def sign_gradient(
        self,
        gradient: Tensor,
        x: Tensor,
        residual: Tensor | None,
        k: int,
        branches: int,
        out: Tensor,
        surrogate: Surrogate | None,
    ) -> None:
        """Writes ``surrogate(x) * gradient + residual`` of branch k into ``out``.

        Args:
            gradient: Gradient of the signs of the branch, ``(N, C, H, W)``.
            x, residual, out: Prepared maps of all branches, ``(N, K*C, H, W)``.
            k: The branch.
            branches: Number K.
            surrogate: The surrogate gradient; None for ``max(0, 2 - 2|x|)``.
        """
        raise NotImplementedError

    def convolve_merged(self, x: Tensor, weight: Tensor, geometry: UnitGeometry) -> Tensor:
        return convolve_signs(geometry, signs_of(x, self.dtype), weight.to(self.dtype))

    def unit_gradients(self, at: UnitGradients) -> tuple[Tensor | None, Tensor | None]:
        geometry = at.geometry
        x_gradient = torch.empty_like(at.x) if at.needs_x else None
        weight_gradient = torch.empty_like(at.weight) if at.needs_weight else None
        # Branches that share their weights are one batch.
        batches = [range(at.branches)] if at.shares_weights else [(k,) for k in range(at.branches)]
        inverse = None
        if at.scale is not None:
            inverse = at.scale.clamp(min=torch.finfo(at.scale.dtype).tiny).reciprocal()
            inverse = inverse.to(at.weight.dtype).view(-1, 1, 1, 1)
        for index, batch in enumerate(batches):
            rows = slice(index * geometry.out_channels, (index + 1) * geometry.out_channels)
            weight = at.weight[rows]
            part = weight if geometry.merges else self.weight_signs(weight)
            gradient = _cat([at.gradient_of(k, len(batch) == 1) for k in batch]).to(self.dtype)
            signs = _cat([self.branch_signs(at.x, k, at.branches) for k in batch])
            of_signs, of_weight = convolution_gradients(
                geometry,
                index,
                gradient,
                signs,
                part.to(self.dtype),
                at.needs_x,
                at.needs_weight,
                self.sums_over_padding,
            )
            if weight_gradient is not None:
                assert of_weight is not None
                of_weight = of_weight.to(weight.dtype)
                if inverse is None:
                    weight_gradient[rows] = of_weight
                else:
                    torch.mul(of_weight, inverse[rows], out=weight_gradient[rows])
            if x_gradient is not None:
                assert of_signs is not None
                for k, found in zip(batch, of_signs.chunk(len(batch)), strict=True):
                    self.sign_gradient(found, at.x, at.residual, k, at.branches, x_gradient, at.surrogate(k))
        return x_gradient, weight_gradient


def _cat(maps: Sequence[Tensor]) -> Tensor:
    """Maps as one batch; a single map is not copied."""
    return maps[0] if len(maps) == 1 else torch.cat(tuple(maps))
