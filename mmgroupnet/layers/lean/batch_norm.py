r"""A batch norm behind the integers of a binary convolution, without autograd.

With the integers y, the scale :math:`\alpha`, :math:`r = \max(y, 0)` (or y), and mean :math:`\mu` and inverse deviation
:math:`\rho` of :math:`\alpha r`, its output is

.. math::
    \hat{x} = \rho (\alpha r - \mu), \qquad \mathrm{out} = \gamma \hat{x} + \beta

and, with the gradient g of its output and sums over the n pixels of all processes, its gradients in training are

.. math::
    \nabla\beta = \sum g, \qquad \nabla\gamma = \sum g \hat{x} = \rho \Bigl(\alpha \sum g r - \mu \sum g\Bigr), \qquad
    \nabla(\alpha y) = [y > 0] \, \gamma \rho \, \bigl(g - \nabla\beta / n - \hat{x} \nabla\gamma / n\bigr)

which is affine in g and r. In evaluation mode the two subtracted terms are zero.
"""

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from mmgroupnet.layers.lean.path import is_as_written
from mmgroupnet.ops.passes import NormPasses, Running


def is_batch_norm(norm: nn.Module) -> bool:
    """Whether a norm computes the same as torch's batch norm or synchronised batch norm; mmengine's class inherits
    torch's forward."""
    return is_as_written(norm, nn.BatchNorm2d, nn.SyncBatchNorm)


def is_synchronised(norm: nn.Module) -> bool:
    """Whether a norm currently takes statistics over several processes."""
    return (
        type(norm).forward is nn.SyncBatchNorm.forward
        and norm.training
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size(norm.process_group) > 1
    )


class Statistics(NamedTuple):
    r"""Statistics of one forward pass.

    Attributes:
        mean: :math:`\mu`, ``(C,)``, float64.
        inverse_deviation: :math:`\rho`, ``(C,)``, float64.
        num_values: n, the values per channel behind them, ``()``, float64.
        vectors: Scale and shift of r that give the output, per folded channel, ``(2, K*C)``, if the backend computes
            them. Mean and inverse deviation then have a dtype of the backend's choice, and ``num_values`` is None: the
            count of the pixels of this process.
    """

    mean: Tensor
    inverse_deviation: Tensor
    num_values: Tensor | None
    vectors: Tensor | None = None


class AffineOfNorm(NamedTuple):
    r"""Weight and bias of a norm, ``(C,)`` each; None if it has none."""

    weight: Tensor | None
    bias: Tensor | None


class BatchNorm:
    """Forward and backward pass of a batch norm. Mode, eps and process group are read once, here.

    Args:
        norm: The norm.
        branches: Branches that share it; 1 if each has its own channels.
        passes: The backend's arithmetic, for norms that do not synchronise over processes. Default: None, torch's in
            double precision.
    """

    def __init__(self, norm: nn.Module, branches: int, passes: NormPasses | None = None) -> None:
        self.branches = branches
        self.channels = norm.num_features
        self.eps = norm.eps
        self.uses_batch = norm.training or norm.running_mean is None
        self.is_synchronised = is_synchronised(norm)
        self.group = norm.process_group if self.is_synchronised else None
        self.passes = None if self.is_synchronised else passes

    def _reduced(self, sums: Tensor) -> Tensor:
        """Sums of all branches, ``(2, K*C)`` to ``(2, C)``."""
        return sums.view(2, self.branches, -1).sum(1)

    def _all_reduce(self, values: Tensor) -> Tensor:
        if self.is_synchronised:
            distributed.all_reduce(values, group=self.group)
        return values

    def statistics(self, norm: nn.Module, moments: Tensor | None, pixels: int, scale: Tensor) -> Statistics:
        """Statistics of ``scale * r``; updates the running ones.

        Args:
            norm: The norm.
            moments: Sums of r and r * r, ``(2, K*C)``; None in evaluation mode.
            pixels: Pixels of a branch, in all images.
            scale: ``(C,)``.

        Raises:
            ValueError: If all processes together have only one value per channel.
        """
        scale = scale.double()
        if moments is None:
            inverse_deviation = (norm.running_var.double() + self.eps).rsqrt()
            return Statistics(norm.running_mean.double(), inverse_deviation, scale.new_ones(()))
        local = pixels * self.branches
        count = moments.new_full((1,), local)
        values = self._all_reduce(torch.cat([self._reduced(moments).flatten(), count]))
        sums, count = values[:-1].view(2, -1), values[-1].clone()  # a view would keep all of them
        if local <= 1 and count == 1:  # in this order: reading count would wait for a GPU
            self._refuse_one_value(norm)
        # Without any value the statistics are those of zeros, and running statistics stay.
        divisor = count.clamp(min=1)
        # Around an integer near the mean: sums of integers are exact, so the variance loses no digits by cancellation.
        centre = (sums[0] / divisor).round()
        rest = sums[0] / divisor - centre
        moment = (sums[1] - 2 * centre * sums[0] + count * centre.square()) / divisor
        mean = scale * (centre + rest)
        variance = scale.square() * (moment - rest.square()).clamp(min=0)
        self._move(norm, mean, variance, count)
        return Statistics(mean, (variance + self.eps).rsqrt(), count)

    def statistics_of(self, norm: nn.Module, y: Tensor, relu: bool, affine: AffineOfNorm, scale: Tensor) -> Statistics:
        """:meth:`statistics` by the backend's arithmetic :attr:`passes`, of the integers y.

        Raises:
            ValueError: If there is one value per channel.
        """
        if self.uses_batch and y.numel() // y.shape[1] * self.branches <= 1:
            self._refuse_one_value(norm)
        passes = self.passes
        assert passes is not None
        running = None
        if norm.running_mean is not None:
            moves = norm.training and norm.track_running_stats
            running = Running(norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum, moves)
        mean, inverse_deviation, vectors = passes.statistics(
            y, relu, self.branches, scale, *affine, running, self.eps, self.uses_batch
        )
        return Statistics(mean, inverse_deviation, None, vectors)

    def _refuse_one_value(self, norm: nn.Module) -> None:
        raise ValueError(
            f'one value per channel: {type(norm).__name__}({self.channels}) takes the statistics of more than one, '
            'over all images and processes'
        )

    @staticmethod
    def _move(norm: nn.Module, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Updates the running statistics of a norm in training."""
        if not (norm.training and norm.track_running_stats and norm.running_mean is not None):
            return
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / norm.num_batches_tracked.double() if momentum is None else momentum
        momentum = momentum * (count > 0).double()
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for running, value in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            running.copy_(running.double().lerp(value, momentum))

    @staticmethod
    def _factor(affine: AffineOfNorm, statistics: Statistics) -> Tensor:
        if affine.weight is None:
            return statistics.inverse_deviation
        return affine.weight.detach().double() * statistics.inverse_deviation

    def scale_and_shift(self, affine: AffineOfNorm, statistics: Statistics, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of r that give the output, per folded channel."""
        if statistics.vectors is not None:
            return statistics.vectors[0], statistics.vectors[1]
        factor = self._factor(affine, statistics)
        shift = -factor * statistics.mean
        if affine.bias is not None:
            shift = shift + affine.bias.detach().double()
        return (factor * scale.double()).repeat(self.branches), shift.repeat(self.branches)

    def backward(
        self, affine: AffineOfNorm, sums: Tensor, statistics: Statistics, scale: Tensor
    ) -> tuple[AffineOfNorm, tuple[Tensor, Tensor, Tensor]]:
        """Gradients of weight and bias, and the coefficients p, q, s of the gradient ``p * g + q * r + s`` of ``scale *
        y``, per folded channel.

        Args:
            affine: Weight and bias.
            sums: Sums of g and of g * r, ``(2, K*C)``.
            statistics: The result of :meth:`statistics`.
            scale: ``(C,)``.
        """
        mean, inverse_deviation, num_values, _ = statistics
        scale = scale.double()
        g, g_r = self._reduced(sums)
        of_weight = inverse_deviation * (scale * g_r - mean * g)
        p = self._factor(affine, statistics)
        q = s = torch.zeros_like(p)
        if self.uses_batch:
            assert num_values is not None
            mean_g, mean_g_x = self._all_reduce(torch.stack([g, of_weight])) / num_values.clamp(min=1)
            q = -p * inverse_deviation * scale * mean_g_x
            s = -p * (mean_g - mean * inverse_deviation * mean_g_x)
        p, q, s = (value.repeat(self.branches) for value in (p, q, s))
        return AffineOfNorm(of_weight, g), (p, q, s)
