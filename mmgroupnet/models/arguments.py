"""Checks of arguments that several parts have."""

from torch import nn


def require_norm(part: nn.Module, norm_cfg: dict | None) -> None:
    """Refuses a binary part without norms, which some stock parts have by default.

    Raises:
        ValueError: If ``norm_cfg`` is None.
    """
    if norm_cfg is None:
        raise ValueError(
            f'norm_cfg=None: the signs of {type(part).__name__} need a norm in front of them, since a sign of what '
            "comes out of a ReLU is constant; give a norm such as dict(type='BN')"
        )
