"""What a binary conv offers to lean training and to packing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmgroupnet.layers.observers import Observed
from mmgroupnet.ops import Residual, UnitGeometry
from mmgroupnet.quantizers import is_standard_sign, is_standard_weight


class ConvOperands(NamedTuple):
    """Tensors besides the input that a binary conv has gradients for.

    Attributes:
        weight: Latent weights, whose signs are convolved, ``(K*C_out, C_in/groups, kh, kw)``; straight through.
        scale: Magnitudes of the weights, ``(K*C_out,)``, not negative.
        shift: Added to the input in front of its sign, ``(K*C_in,)``; None for nothing.
        merge_scales: Learned scales of merged bases, ``(K,)``; None for their mean, and where bases are not merged.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor | None
    merge_scales: Tensor | None


class BinaryConv(Observed, ABC):
    """What a binary conv offers to lean training and to packing; :class:`mmgroupnet.layers.BinaryConv2d` does.

    Attributes:
        activation: Its activation quantizer.
        weight_quantizer: Its weight quantizer.
        memory_efficient: Whether it may run lean.
        num_bases: Number K of bases.
        in_channels: Channels of one branch of its input.
        weight: Its latent weights.
        bias: Its bias; None without.
        input_norm: A norm in front of its sign; None without.
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
        """Branches that are folded into its channels."""

    @property
    @abstractmethod
    def has_own_weight(self) -> bool:
        """Whether a subclass or the instance makes its weights otherwise than its class says."""

    @property
    @abstractmethod
    def is_as_written(self) -> bool:
        """Whether it computes what its class says: neither a subclass nor the instance has a forward of its own."""

    @abstractmethod
    def geometry(
        self, shares_weights: bool = False, relu: bool = False, residual: Residual = Residual.NONE
    ) -> UnitGeometry:
        """Its shape parameters; ``shares_weights`` where K branches share a conv of one."""

    @abstractmethod
    def operands(self) -> ConvOperands:
        """Its tensors, made of its parameters by autograd."""

    @abstractmethod
    def bypassed_parts(self) -> Sequence[nn.Module]:
        """The modules whose work lean training does in their place."""


def has_standard_quantizers(conv: BinaryConv) -> bool:
    """Whether a conv may run lean: it wants to, and its quantizers compute what their base classes say."""
    return (
        conv.memory_efficient
        and not conv.has_own_weight
        and is_standard_sign(conv.activation)
        and is_standard_weight(conv.weight_quantizer)
    )
