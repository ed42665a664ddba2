"""Observers of signs: what watches a binary layer without changing how it runs."""

from collections.abc import Callable

from torch import Tensor, nn

# Called with a boolean map (N, K*C, H, W), True where a sign is +1, in every forward pass of a layer.
SignObserver = Callable[[Tensor], None]


def notify(layer: nn.Module, positive: Tensor) -> None:
    """Shows the signs of a layer to its ``sign_observer``.

    Args:
        layer: A layer whose ``sign_observer`` is not None.
        positive: ``(N, K*C, H, W)``, True where a sign is +1.

    Raises:
        RuntimeError: If the observer raises.
    """
    try:
        layer.sign_observer(positive.detach())
    except Exception as error:
        raise RuntimeError(
            f'sign_observer={layer.sign_observer!r} of {type(layer).__name__}({layer.extra_repr()}) raised '
            f'{type(error).__name__}: {error}'
        ) from error
