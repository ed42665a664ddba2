"""Checks that a binary network is alive: its signs are not constant, and its layers distinguish two pictures.

The sign of a map behind a ReLU is the constant +1. Such a network still has finite losses and gradients, so checks of
shapes, losses and gradients do not find this fault.
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
# Tighter bounds for a fresh network, where norms centre the input of every sign: ALIVE finds only extreme drifts.
BALANCED = (0.25, 0.75)


class LayerCall(NamedTuple):
    """One call of a binary layer with a batch of two pictures.

    Attributes:
        layer: Name of the layer.
        positive: Share of +1 among its signs.
        differs: Whether the outputs for the two pictures differ.
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
    """Gives the batch norms of a fresh model the statistics of one ``run`` in training mode, then sets eval mode.

    Neither mode of a fresh model is suitable. In eval mode its batch norms are the identity, so every map behind a ReLU
    stays non-negative and every network would look dead. In training mode a norm centres the maps of the two pictures,
    and the result for one depends on the other: a nearly constant map would look alive. A trained detector runs in eval
    mode with running statistics, and this function gives the same situation.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # cumulative average: the running statistics equal those of the one batch
    model.train()
    with torch.no_grad():
        run()
    model.eval()


def binary_layer_calls(model: nn.Module, run: Callable[[], object]) -> list[LayerCall]:
    """Records every call of a binary layer of ``model`` while ``run`` sends a batch of two through it. (The towers of a
    head are called once per pyramid level.)

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
            # A layer that K branches share gets them as a batch: first all of one picture, then all of the other.
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
    """Checks that there are binary layers, that the outputs for the two pictures differ in every call, and that the
    share of +1 lies within ``bounds``."""
    assert calls, 'there is no binary layer'
    dead = [call for call in calls if not (call.differs and bounds[0] <= call.positive <= bounds[1])]
    assert not dead, f'{len(dead)} of {len(calls)} calls are dead: {dead[:8]}'
