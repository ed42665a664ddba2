"""Arguments that several binary parts share."""

from collections.abc import Mapping, Sequence

from torch import nn

from mmgroupnet.errors import UserError


def require_norm(part: nn.Module, norm_cfg: dict | None) -> dict:
    """Refuses a binary part without norms, which some stock parts have by default; returns ``norm_cfg``.

    Raises:
        UserError: If ``norm_cfg`` is None.
    """
    if norm_cfg is None:
        raise UserError(
            f'norm_cfg=None: the signs of {type(part).__name__} need a norm in front of them, since the sign of the '
            "output of a ReLU is constant; give a norm such as dict(type='BN')"
        )
    return norm_cfg


def refuse_options(
    part: nn.Module,
    names: Sequence[str],
    given: Mapping[str, object],
    reason: str = 'has binary convs, whose options are in binary_cfg',
) -> None:
    """Refuses options of a stock part that have no effect on ours.

    Args:
        part: Our part.
        names: The options.
        given: The arguments that it got.
        reason: Why they have none, in a sentence whose subject is the part. Default: its convs are binary.

    Raises:
        UserError: If one of ``names`` is ``given``.
    """
    for name in names:
        if name in given:
            raise UserError(f'{name}={given[name]!r}: {type(part).__name__} {reason}, leave it out')


def layerwise_conv_cfg(num_bases: int, learned_scales: bool, norm_cfg: dict, binary_cfg: dict | None) -> dict:
    """The ``conv_cfg`` that makes a stock neck or head binary.

    With it, mmcv's ``ConvModule`` is norm, sign, layer-wise binary conv, followed by its own norm and activation.
    Because of the norm in front of the sign, its input may come from a ReLU.

    Args:
        num_bases, learned_scales: As for :class:`LayerwiseBinaryConv2d`.
        norm_cfg: Config of the norm in front of the sign.
        binary_cfg: Further options of the conv, see :class:`BinaryConv2d`.
    """
    return dict(
        type='mmgroupnet.LayerwiseBinaryConv2d',
        num_bases=num_bases,
        learned_scales=learned_scales,
        input_norm=norm_cfg,
        **(binary_cfg or {}),
    )
