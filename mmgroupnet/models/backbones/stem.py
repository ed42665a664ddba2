"""Full-precision layers in front of the first block."""

import copy

from torch import Tensor, nn

from mmgroupnet.layers import is_as_written
from mmgroupnet.layers.packed import NotPackable, Packable, PackedStem, Packing, find_twin


class Stem(Packable, nn.Sequential):
    """Consecutive layers that read the picture. Packing keeps them in full precision, in channels_last."""

    def packed_twin(self, packing: Packing) -> PackedStem:
        if not is_as_written(self, Stem):
            raise NotPackable(f'{type(self).__name__} has a forward of its own')
        return PackedStem(*copy.deepcopy(list(self)))

    def forward(self, x: Tensor) -> Tensor:
        twin = find_twin(self, x)
        return super().forward(x) if twin is None else twin(x)
