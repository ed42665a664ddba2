"""What a binary conv offers to lean training and to packing."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from mmgroupnet.layers.observers import SignObserver
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


class BinaryConv(Protocol):
    """What a binary conv offers to lean training and to packing; :class:`mmgroupnet.layers.BinaryConv2d` does.

    Attributes:
        activation: Its activation quantizer.
        weight_quantizer: Its weight quantizer.
        memory_efficient: Whether it may run lean.
        in_channels: Channels of one branch of its input.
        num_folded: Branches that are folded into its channels.
        has_own_weight: Whether a subclass makes its weights otherwise.
        is_as_written: Whether it computes what this class says, and no subclass has a forward of its own.
        bias: Its bias; None without.
        input_norm: A norm in front of its sign; None without.
        sign_observer: Watches its signs; None for nothing.
    """

    activation: nn.Module
    weight_quantizer: nn.Module
    memory_efficient: bool
    in_channels: int
    num_folded: int
    has_own_weight: bool
    is_as_written: bool
    bias: nn.Parameter | None
    input_norm: nn.Module | None
    sign_observer: SignObserver | None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its parameters, as those of any module."""

    def geometry(self, is_shared: bool = False, relu: bool = False, residual: Residual = Residual.NONE) -> UnitGeometry:
        """Its shape parameters; ``is_shared`` where K branches share a conv of one."""

    def operands(self) -> ConvOperands:
        """Its tensors, made of its parameters by autograd."""

    def bypassed_parts(self) -> Sequence[nn.Module]:
        """The modules whose work lean training does in their place."""


def is_binary_conv(module: nn.Module) -> bool:
    """Whether a module is a :class:`BinaryConv`."""
    return hasattr(module, 'operands')  # a runtime check of the whole protocol would be slow


def has_standard_quantizers(conv: BinaryConv) -> bool:
    """Whether a conv may run lean: it wants to, and its quantizers compute what their base classes say."""
    return (
        conv.memory_efficient
        and not conv.has_own_weight
        and is_standard_sign(conv.activation)
        and is_standard_weight(conv.weight_quantizer)
    )
