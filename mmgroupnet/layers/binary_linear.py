"""Binary linear layers; the kernels compute them as 1x1 convolutions whose pixels are the vectors."""

from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.layers.binary_conv import BinaryConv2d, LayerwiseBinaryConv2d
from mmgroupnet.layers.fx import trace_as_leaf
from mmgroupnet.layers.lean.path import is_as_written
from mmgroupnet.layers.packed import PackedLinear, Packing, find_twin, pack_apart
from mmgroupnet.layers.vectors import as_map, as_vectors
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class BinaryLinear(BinaryConv2d):
    """Binary linear layer: (norm,) sign, product with binarised weights.

    Args:
        in_features: Length of the input vectors.
        out_features: Length of the output vectors.
        bias: Adds a learned real-valued bias. Default: False.
        kwargs: ``activation``, ``weight``, ``input_norm``, ``memory_efficient`` as for :class:`BinaryConv2d`. A batch
            norm takes its statistics over all vectors, a group norm over each vector separately.

    Shape: ``(..., in_features)`` to ``(..., out_features)``. The latent ``weight`` is ``(K*out_features, in_features,
    1, 1)``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, **kwargs) -> None:
        super().__init__(in_features, out_features, 1, bias=bias, **kwargs)
        if self.num_folded > 1:
            raise UserError(
                f'num_bases={self.num_bases}: vectors have no folded branches, use LayerwiseBinaryLinear for more bases'
            )
        self.in_features, self.out_features = in_features, out_features

    @property
    def is_as_written(self) -> bool:
        return is_as_written(self, BinaryLinear) and not self.has_own_weight

    def packed_twin(self, packing: Packing) -> nn.Module:
        return PackedLinear(*pack_apart(packing, self))

    @trace_as_leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise UserError(f'input of shape {tuple(x.shape)}: {type(self).__name__} takes (..., {self.in_features})')
        twin = find_twin(self, x)
        if twin is not None:
            return twin(x)
        return as_vectors(self._forward_normed(as_map(self.norm_vectors(x))), like=x)

    def norm_vectors(self, x: Tensor) -> Tensor:
        """The norm in front of the sign, which sees every vector as an image of one pixel."""
        if self.input_norm is None:
            return x
        return self.input_norm(x.reshape(-1, self.in_features, 1, 1)).reshape(x.shape)


@MODELS.register_module()
class LayerwiseBinaryLinear(BinaryLinear, LayerwiseBinaryConv2d):
    """Binary linear layer as a sum of K binary ones that read the same signs, see :class:`BinaryLinear` and
    :class:`LayerwiseBinaryConv2d`."""
