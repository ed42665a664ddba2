"""Binary convolutions: sign in front, binarised weights inside, K folded branches."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.layers.branches import build_branch_norm
from mmgroupnet.layers.fx import trace_as_leaf
from mmgroupnet.layers.lean import BinaryConv, ConvOperands, can_run_conv, run_conv
from mmgroupnet.layers.lean.path import find_hooks, is_as_written
from mmgroupnet.layers.merges import ScaledMerge, build_merge
from mmgroupnet.layers.observers import notify
from mmgroupnet.layers.packed import Packable, Packing, find_twin, pack_apart
from mmgroupnet.ops import Residual, UnitGeometry
from mmgroupnet.ops.float_convolution import convolve_signs
from mmgroupnet.quantizers import SignActivation, SignWeight, build_quantizer, checked_signs, start_quantizer
from mmgroupnet.registry import MODELS


def _pair(name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(entry, int) and entry >= minimum for entry in pair):
        raise UserError(f'{name}={value!r}: give an int >= {minimum} or a (height, width) pair of them')
    return pair


def raise_packed(prefix: str) -> NoReturn:
    """Raises the error for packed weights in a float layer whose tensors have names that begin with ``prefix``."""
    raise UserError(
        f'{prefix.removesuffix(".") or "the conv"} is packed: build the model as '
        "dict(type='mmgroupnet.Packed', backbone={}, model=...)"
    )


@MODELS.register_module()
class BinaryConv2d(Packable, BinaryConv):
    """Binary 2D convolution of K folded branches: (norm,) sign, pad, convolve with binarised weights.

    Every branch has its own weights and its own input channels. With ``num_bases=1`` the layer replaces an
    ``nn.Conv2d`` in any OpenMMLab module: ``conv_cfg=dict(type='mmgroupnet.BinaryConv2d')``. If its input may come from
    a ReLU, whose sign is constant, give ``input_norm``.

    Args:
        in_channels: Input channels *of one branch*.
        out_channels: Output channels *of one branch*.
        kernel_size: An int or a (height, width) pair.
        stride: An int or a (height, width) pair. Default: 1.
        padding: An int, a (height, width) pair, or 'same' for ``dilation * (kernel_size - 1) / 2``, which keeps the
            size at stride 1 (odd kernels only). Default: 0.
        dilation: One int for all branches, or a list of ``num_bases`` ints, one rate per branch (BPAC). Different rates
            need ``padding='same'`` (or a 1x1 kernel), otherwise the branches would differ in size. Default: 1.
        groups: Ordinary groups *inside every branch*. Default: 1.
        bias: Adds a learned real-valued bias. Default: False.
        num_bases: Number K of folded branches. Default: 1.
        padding_value: Value of the padding after the sign: +1 (as in Group-Net's released code), -1, or 0, which makes
            the border ternary. Default: 1.
        activation: Config of the activation quantizer. Default: ``PolynomialSign``.
        weight: Config of the weight quantizer. Default: ``TensorScaleWeight``, one scale per branch.
        input_norm: Config of a norm in front of the sign, on each of the K branches by itself (the order of
            XNOR-Net); ``num_groups`` of a ``GN`` counts the groups of one branch. Default: None.
        memory_efficient: Keeps only its input for the backward pass, and recomputes signs and binarised weights. Blocks
            and towers of such convs keep even less, see :mod:`mmgroupnet.layers.lean`. False uses plain autograd, for
            debugging, with the same gradients. Default: True.

    Attributes:
        sign_observer: Called in every forward pass with a boolean map ``(N, K*in_channels, H, W)``, True where a sign
            of the input is +1. It does not change how the conv runs. Default: None.

    Shape: ``(N, K*in_channels, H, W)`` to ``(N, K*out_channels, H', W')``. The latent ``weight`` is ``(K*out_channels,
    in_channels/groups, kh, kw)``.

    Raises:
        UserError: If an argument is out of its range, or channels are not divisible by ``groups``.
    """

    merges: ClassVar[bool] = False  # whether the K bases read one map and are added up

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_bases: int = 1,
        padding_value: int = 1,
        activation: dict = dict(type='mmgroupnet.PolynomialSign'),
        weight: dict = dict(type='mmgroupnet.TensorScaleWeight'),
        input_norm: dict | None = None,
        memory_efficient: bool = True,
    ) -> None:
        super().__init__()
        if num_bases < 1:
            raise UserError(f'num_bases={num_bases}: give the number of branches, an int >= 1')
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise UserError(
                f'groups={groups} does not divide in_channels={in_channels} and out_channels={out_channels}'
            )
        if padding_value not in (-1, 0, 1):
            raise UserError(f'padding_value={padding_value}: a padded sign can be +1, -1 or 0')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair('kernel_size', kernel_size, minimum=1)
        self.stride = _pair('stride', stride, minimum=1)
        self.groups = groups
        self.num_bases = num_bases
        self.padding_value = padding_value
        self.memory_efficient = memory_efficient
        self.dilation = dilation if isinstance(dilation, int) else tuple(dilation)
        rates = self.branch_dilations()
        if padding == 'same':
            if any(size % 2 == 0 for size in self.kernel_size):
                raise UserError(f"padding='same' needs odd kernels, kernel_size={self.kernel_size}")
            self.padding: tuple[int, int] | str = padding
        elif isinstance(padding, str):
            raise UserError(f"padding={padding!r}: give 'same', an int >= 0 or a (height, width) pair of them")
        else:
            self.padding = _pair('padding', padding, minimum=0)
            if len(set(rates)) > 1 and self.kernel_size != (1, 1):
                raise UserError(
                    f'dilation={self.dilation} differs between branches: padding={padding!r} would give them maps of '
                    "different size, give padding='same'"
                )
        # mmcv's ConvModule copies these two from its conv.
        self.transposed = False
        self.output_padding = (0, 0)

        branches = self.num_folded
        self.input_norm = None if input_norm is None else build_branch_norm(input_norm, branches, in_channels)
        self.activation = build_quantizer(activation, branches * in_channels)
        self.weight_quantizer = build_quantizer(weight, num_bases * out_channels)
        self.weight = nn.Parameter(torch.empty(num_bases * out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(branches * out_channels)) if bias else None
        self.reset_parameters()

    @property
    def is_binary(self) -> bool:
        """Whether both activations and weights are signs; in the first of two training stages they are not."""
        return isinstance(self.activation, SignActivation) and isinstance(self.weight_quantizer, SignWeight)

    @property
    def has_own_weight(self) -> bool:
        standard = LayerwiseBinaryConv2d if self.merges else BinaryConv2d
        return 'effective_weight' in self.__dict__ or type(self).effective_weight is not standard.effective_weight

    @property
    def is_as_written(self) -> bool:
        return is_as_written(self, BinaryConv2d) and not self.has_own_weight

    @property
    def num_folded(self) -> int:
        return 1 if self.merges else self.num_bases

    def reset_parameters(self) -> None:
        """Kaiming-normal latent weights (fan out, one branch) and zero bias."""
        fan_out = self.out_channels // self.groups * math.prod(self.kernel_size)
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan_out))
        self.start_quantizer()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def start_quantizer(self) -> None:
        """Sets the first values of learned scales, given the current latent weights."""
        if isinstance(self.weight_quantizer, SignWeight):
            start_quantizer(self.weight_quantizer, self.weight, self.num_bases)

    def init_weights(self) -> None:
        """Calls :meth:`reset_parameters`; without this method mmcv's ConvModule would initialise the K branches as one
        wide conv."""
        self.reset_parameters()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: Mapping, *args: object
    ) -> None:
        # Without this, mmengine would log that the weights are missing and go on with random ones. A packed checkpoint
        # has an entry under the name of each float conv that was packed, wherever its bits are stored now.
        if local_metadata.get('packed') or f'{prefix}bits' in state_dict:
            raise_packed(prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def branch_dilations(self) -> tuple[int, ...]:
        """Dilation of each base."""
        rates = (self.dilation,) * self.num_bases if isinstance(self.dilation, int) else self.dilation
        if len(rates) != self.num_bases:
            raise UserError(
                f'dilation={self.dilation} has {len(rates)} rates for num_bases={self.num_bases}: give one int '
                'for all branches or one rate per branch (a (height, width) pair is not supported)'
            )
        if not all(isinstance(rate, int) and rate >= 1 for rate in rates):
            raise UserError(f'dilation={self.dilation}: rates are ints >= 1')
        return rates

    def geometry(
        self, shares_weights: bool = False, relu: bool = False, residual: Residual = Residual.NONE
    ) -> UnitGeometry:
        """Shape parameters of the conv and of the operations behind it.

        Args:
            shares_weights: Whether the branches of the input share this conv.
            relu, residual: The operations behind it, see :class:`UnitGeometry`.
        """
        return UnitGeometry(
            num_bases=self.num_bases,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=None if isinstance(self.padding, str) else self.padding,
            padding_value=self.padding_value,
            dilations=self.branch_dilations(),
            shares_weights=shares_weights and not self.merges,
            merges=self.merges,
            relu=relu,
            residual=residual,
        )

    def operands(self) -> ConvOperands:
        """The tensors for which lean training computes gradients."""
        latent, scale = self.weight_quantizer.binarise(self.weight, self.num_bases)
        return ConvOperands(latent, scale, self.activation.shift_of_channels(), self.merge_scales())

    def merge_scales(self) -> Tensor | None:
        """Learned scales of merged bases, ``(K,)``; None for their mean, or if bases are not merged."""
        return None

    def bypassed_parts(self) -> list[nn.Module]:
        """The modules that lean training bypasses, because it computes their results itself."""
        return [self.activation, self.weight_quantizer]

    def packed_twin(self, packing: Packing) -> nn.Module:
        norm, unit = pack_apart(packing, self)
        return unit if norm is None else nn.Sequential(norm, unit)

    def effective_weight(self) -> Tensor:
        """The weights for the convolution with signs, ``(K*C_out, C_in/groups, kh, kw)``."""
        return self.weight_quantizer(self.weight, self.num_bases)

    def _signs_and_scale(self) -> tuple[Tensor, Tensor | None]:
        """The weights for the convolution with signs, and the scale of the result, ``(K*C_out,)``: the signs and their
        scale or, if the quantizer has its own forward, its weights and None."""
        quantizer = self.weight_quantizer
        if not isinstance(quantizer, SignWeight) or not is_as_written(quantizer, SignWeight):
            return self.effective_weight(), None
        if self.merges or self.has_own_weight or find_hooks(quantizer) is not None:
            return self.effective_weight(), None
        return checked_signs(quantizer, self.weight, self.num_bases)

    @trace_as_leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.num_folded * self.in_channels:
            raise UserError(
                f'input of shape {tuple(x.shape)}: {type(self).__name__} takes '
                f'(N, {self.num_folded} * {self.in_channels}, H, W)'
            )
        twin = find_twin(self, x)
        if twin is not None:
            return twin(x)
        return self._forward_normed(x if self.input_norm is None else self.input_norm(x))

    def _forward_normed(self, x: Tensor) -> Tensor:
        """The forward pass behind ``input_norm``."""
        if can_run_conv(self, x):
            out = run_conv(self, x)
        else:
            signs = self.activation(x)
            if self.sign_observer is not None:
                notify(self, signs >= 0)
            weight, scale = self._signs_and_scale()
            out = convolve_signs(self.geometry(), signs, weight)
            out = out if scale is None else out * scale.to(out.dtype).view(-1, 1, 1)
        return out if self.bias is None else out + self.bias.to(out.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, '
            f'num_bases={self.num_bases}, padding_value={self.padding_value}'
        )


@MODELS.register_module()
class LayerwiseBinaryConv2d(BinaryConv2d):
    r"""One convolution as a sum of K binary ones that read the same signs (LBD, layer-wise binary decomposition).

    .. math::
        F(x) = \sum_i \lambda_i \alpha_i \operatorname{conv}(\operatorname{sign}(x), b_i)
             = \operatorname{conv}\Bigl(\operatorname{sign}(x), \sum_i \lambda_i \alpha_i b_i\Bigr)

    It is linear in the weights, so training merges the weights and runs one convolution.

    Args:
        learned_scales: Learned scales :math:`\lambda_i` (``U(0, 1)`` at the start) in place of the mean, 1/K. Default:
            False.
        args, kwargs: As for :class:`BinaryConv2d`; ``in_channels`` and ``out_channels`` are those of the whole layer,
            ``dilation`` is one int.

    Shape: ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``. The latent ``weight`` is ``(K*out_channels,
    in_channels/groups, kh, kw)``.

    Source: Group-Net, section 3.2 (layer-wise binary decomposition).

    Raises:
        UserError: As :class:`BinaryConv2d`, and if ``dilation`` is not one int.
    """

    merges = True

    def __init__(self, *args, learned_scales: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.dilation, int):
            raise UserError(
                f'dilation={self.dilation}: the bases of a layer-wise conv are merged before they convolve, '
                'give one int'
            )
        self.merge = build_merge(self.num_bases, learned_scales)

    def merge_scales(self) -> Tensor | None:
        return self.merge.scales if isinstance(self.merge, ScaledMerge) else None

    def bypassed_parts(self) -> list[nn.Module]:
        return [*super().bypassed_parts(), self.merge]

    def effective_weight(self) -> Tensor:
        """The merged weights, ``(C_out, C_in/groups, kh, kw)``."""
        # Merging expects the batch in the leading axis.
        return self.merge(super().effective_weight().unsqueeze(0)).squeeze(0)
