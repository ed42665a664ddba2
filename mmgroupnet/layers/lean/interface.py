"""The interface of binary convs for lean training and packing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmgroupnet.layers.observers import Observed
from mmgroupnet.ops import Residual, UnitGeometry
from mmgroupnet.quantizers import is_standard_sign, is_standard_weight


class ConvOperands(NamedTuple):
    """The tensors besides the input for which a binary conv computes gradients.

    Attributes:
        weight: Latent weights, ``(K*C_out, C_in/groups, kh, kw)``; the conv uses their signs, with a straight-through
            gradient.
        scale: Magnitudes of the weights, ``(K*C_out,)``, not negative.
        shift: Shift of the input in front of its sign, ``(K*C_in,)``; None for no shift.
        merge_scales: Learned scales of merged bases, ``(K,)``; None for their mean, or if bases are not merged.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor | None
    merge_scales: Tensor | None


class BinaryConv(Observed, ABC):
    """The interface of a binary conv for lean training and packing; :class:`mmgroupnet.layers.BinaryConv2d` implements
    it.

    Attributes:
        activation: Its activation quantizer.
        weight_quantizer: Its weight quantizer.
        memory_efficient: Whether it may run lean.
        num_bases: Number K of bases.
        in_channels: Channels of one branch of its input.
        weight: Its latent weights.
        bias: Its bias, or None.
        input_norm: The norm in front of its sign, or None.
    """

    activation: nn.Module
    weight_quantizer: nn.Module
    memory_efficient: bool
    num_bases: int
    in_channels: int
    weight: nn.Parameter
    bias: nn.Parameter | None
    input_norm: nn.Module | None

    @property
    @abstractmethod
    def num_folded(self) -> int:
        """Number of branches that are folded into its channels."""

    @property
    @abstractmethod
    def has_own_weight(self) -> bool:
        """Whether a subclass or the instance overrides how its class makes the weights."""

    @property
    @abstractmethod
    def is_as_written(self) -> bool:
        """Whether it uses the forward of its class: neither a subclass nor the instance overrides it."""

    @abstractmethod
    def geometry(
        self, shares_weights: bool = False, relu: bool = False, residual: Residual = Residual.NONE
    ) -> UnitGeometry:
        """Its shape parameters; ``shares_weights`` if K branches share a conv of one branch."""

    @abstractmethod
    def operands(self) -> ConvOperands:
        """Its tensors, computed from its parameters under autograd."""

    @abstractmethod
    def bypassed_parts(self) -> Sequence[nn.Module]:
        """The modules that lean training bypasses, because it computes their results itself."""


def may_run_lean(conv: BinaryConv) -> bool:
    """Whether a conv may run lean: it allows it, and its quantizers compute the same as their base classes."""
    return (
        conv.memory_efficient
        and not conv.has_own_weight
        and is_standard_sign(conv.activation)
        and is_standard_weight(conv.weight_quantizer)
    )
