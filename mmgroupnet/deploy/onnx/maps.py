"""A model's maps in place of its answer."""

from collections.abc import Iterator

from torch import Tensor, nn


def _flatten(maps: object) -> Iterator[Tensor]:
    """The maps of nested lists and tuples, in their order."""
    if isinstance(maps, Tensor):
        yield maps
    elif isinstance(maps, list | tuple):
        for part in maps:
            yield from _flatten(part)


class Maps(nn.Module):
    """What the head's forward pass gives, flattened in its order; without a head, the maps in front of it.

    Args:
        model: A model with ``extract_feat``, in evaluation mode.
        preprocessing: Its data preprocessor.
        head: Its head. None: the graph ends in front of it.

    Shape: uint8 ``(N, H, W, 3)`` to ``map_0``, ``map_1``, ..., see docs/onnx_file.md.
    """

    outputs = None  # As many as there are, which a forward pass shows.

    def __init__(self, model: nn.Module, preprocessing: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.model = model
        self.head = head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(self.preprocessing(image))
        return tuple(_flatten(maps if self.head is None else self.head(maps)))
