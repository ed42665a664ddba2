"""Whether a binary network is alive: what its signs see, and whether its layers tell two pictures apart.

A sign that sees a map behind a ReLU is the constant +1. Such a network still trains "finitely", so that shapes, losses
and gradients do not show it.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgroupnet.layers import BinaryConv2d

ALIVE = (0.02, 0.98)
# In a fresh network the norms centre what every sign sees; the bounds of life would only catch the far end of a drift.
BALANCED = (0.25, 0.75)


class LayerCall(NamedTuple):
    """One call of a binary layer with a batch of two.

    Attributes:
        layer: Name of the layer.
        positive: Share of +1 at its sign.
        differs: Whether its outputs for the two differ.
    """

    layer: str
    positive: float
    differs: bool


def real_pictures(height: int, width: int) -> Tensor:
    """The two photographs that scikit-learn ships (a temple, a flower), uint8 ``(2, 3, height, width)`` in BGR
    order."""
    pictures = [
        cv2.resize(picture[..., ::-1], (width, height), interpolation=cv2.INTER_AREA)
        for picture in load_sample_images().images
    ]
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])


def estimate_statistics(model: nn.Module, run: Callable[[], object]) -> None:
    """Gives the batch norms of a fresh model the statistics of one training-mode ``run`` and turns to eval mode.

    Neither mode as it stands is honest. In the eval mode of a fresh model a batch norm is the identity, so that every
    map behind a ReLU stays non-negative: each network would look dead. In training mode a norm centres whatever the two
    pictures give it, and they see each other through it: a nearly constant map would look alive. A trained detector
    runs in eval mode with the statistics of other pictures, and so it does here.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain average: one batch counts in full
    model.train()
    with torch.no_grad():
        run()
    model.eval()


def binary_layer_calls(model: nn.Module, run: Callable[[], object]) -> list[LayerCall]:
    """What every binary layer of ``model`` does while ``run`` sends a batch of two through it, call by call (the towers
    of a head are called once per pyramid level).

    Raises:
        AssertionError: If a layer was not called, or called without its sign.
    """
    calls: list[LayerCall] = []
    positive: dict[str, float] = {}
    handles = []
    names = [name for name, module in model.named_modules() if isinstance(module, BinaryConv2d)]
    for name in names:
        layer = model.get_submodule(name)

        def after_sign(module: nn.Module, inputs: tuple, signs: Tensor, name: str = name) -> None:
            positive[name] = (signs >= 0).double().mean().item()

        def after_layer(module: nn.Module, inputs: tuple, out: Tensor, name: str = name) -> None:
            assert name in positive, f'{name} ran without its sign'
            # A layer that K branches share sees them as batch, the pictures one after the other.
            first, second = out.chunk(2)
            calls.append(LayerCall(name, positive.pop(name), not torch.equal(first, second)))

        handles += [layer.activation.register_forward_hook(after_sign), layer.register_forward_hook(after_layer)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    uncalled = set(names) - {call.layer for call in calls}
    assert not uncalled, f'never called: {sorted(uncalled)}'
    return calls


def assert_alive(calls: list[LayerCall], bounds: tuple[float, float] = ALIVE) -> None:
    """Checks that there are binary layers, and that in every call the outputs for the two differ and the share of +1
    lies within ``bounds``."""
    assert calls, 'there is no binary layer'
    dead = [call for call in calls if not (call.differs and bounds[0] <= call.positive <= bounds[1])]
    assert not dead, f'{len(dead)} of {len(calls)} calls are dead: {dead[:8]}'
