"""Norms in front of packed layers, rewritten for a graph."""

import torch
from torch import Tensor, nn

from mmgroupnet.layers.packed import PackedStem, PackedTower, can_fold, fold_norm


class ChannelAffine(nn.Module):
    """A batch norm in evaluation mode as a product and a sum on ``(N, H, W, C)``.

    ONNX's BatchNormalization needs ``(N, C, H, W)``: between packed layers, which read and write channels last, it
    would cost two transposes. The transposes of this module cancel with theirs.

    Args:
        norm: The batch norm.

    Shape: ``(N, C, H, W)`` to the same.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        folded = fold_norm(norm)
        self.register_buffer('scale', folded['norm_scale'].detach().clone())
        self.register_buffer('shift', folded['norm_shift'].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) * self.scale + self.shift).permute(0, 3, 1, 2)


@torch.no_grad()
def rewrite_norms(model: nn.Module) -> None:
    """Replaces the batch norms in front of packed towers by :class:`ChannelAffine`, and packed stems by their layers,
    which ONNX Runtime fuses itself.

    Args:
        model: A packed model, changed in place.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, PackedStem):
                setattr(parent, name, nn.Sequential(*child))
    for tower in model.modules():
        if isinstance(tower, PackedTower):
            tower.input_norms = nn.ModuleList(
                ChannelAffine(norm) if can_fold(norm) else norm for norm in tower.input_norms
            )
