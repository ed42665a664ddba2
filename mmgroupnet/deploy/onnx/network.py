"""A model without its preprocessing and decoding."""

from collections.abc import Iterator

from torch import Tensor, nn


def _flatten(maps: object) -> Iterator[Tensor]:
    """The maps of nested lists and tuples, in their order."""
    if isinstance(maps, Tensor):
        yield maps
    elif isinstance(maps, list | tuple):
        for part in maps:
            yield from _flatten(part)


class Network(nn.Module):
    """Returns the outputs of the head's forward pass, flattened in order; without a head, the maps in front of it.

    Args:
        model: A model with ``extract_feat``.
        head: Its head; None to end the network in front of it.

    Shape: float32 ``(N, 3, H, W)`` to a tuple of maps.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(x)
        return tuple(_flatten(maps if self.head is None else self.head(maps)))
