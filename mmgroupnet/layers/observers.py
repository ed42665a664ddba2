"""Observers of signs: functions that watch a binary layer without changing how it runs."""

from collections.abc import Callable

from torch import Tensor, nn

# Called with a boolean map (N, K*C, H, W), True where a sign is +1, in every forward pass of a layer.
SignObserver = Callable[[Tensor], None]


class Observed(nn.Module):
    """A layer with a ``sign_observer``; copies and files of the layer have no observer."""

    sign_observer: SignObserver | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'sign_observer': None}


def notify(layer: Observed, positive: Tensor) -> None:
    """Calls the ``sign_observer`` of a layer with its signs.

    Args:
        layer: The layer; without an observer nothing happens.
        positive: ``(N, K*C, H, W)``, True where a sign is +1.

    Raises:
        RuntimeError: If the observer raises.
    """
    if layer.sign_observer is None:
        return
    try:
        layer.sign_observer(positive.detach())
    except Exception as error:
        raise RuntimeError(
            f'sign_observer={layer.sign_observer!r} of {type(layer).__name__}({layer.extra_repr()}) raised '
            f'{type(error).__name__}: {error}'
        ) from error
