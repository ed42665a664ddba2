"""Observers of binary layers: they look at the signs of a forward pass and change nothing."""

from torch import Tensor, nn


def notify(layer: nn.Module, positive: Tensor) -> None:
    """Gives the signs of a layer's input to its ``sign_observer``, if it has one.

    Args:
        layer: The layer.
        positive: Where the sign is +1, ``(N, K*C, H, W)``, boolean.

    Raises:
        RuntimeError: If the observer raises; it names the layer and the observer.
    """
    observer = layer.sign_observer
    if observer is None:
        return
    try:
        observer(positive)
    except Exception as error:
        raise RuntimeError(
            f'sign_observer={observer!r} of {type(layer).__name__}({layer.extra_repr()}) raised '
            f'{type(error).__name__}: {error}'
        ) from error
