"""Full-precision ResNets of CIFAR-10."""

import torch.nn.functional as F
from mmcv.cnn.resnet import BasicBlock
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.registry import MODELS


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every second pixel, and half as many channels of zeros on either side ('option A').

    Shape: ``(N, C, H, W)`` to ``(N, 2*C, ceil(H/2), ceil(W/2))``.
    """

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


@MODELS.register_module()
class CIFARResNet(BaseModule):
    """Full-precision ResNet-20, 32, 44 or 56, the float twin of a :class:`GroupNetResNet` with ``stem='cifar'``.

    Three stages of 16, 32 and 64 channels; mmpretrain's ``ResNet_CIFAR`` has the depths and widths of ImageNet.

    Args:
        depth: 20, 32, 44 or 56.
        init_cfg: Initialisation. Default: Kaiming.

    Shape: ``(N, 3, H, W)`` to a tuple of one map, ``(N, 64, H/4, W/4)``.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.

    Raises:
        UserError: If ``depth`` is another number.
    """

    depths = (20, 32, 44, 56)

    def __init__(self, depth: int, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        if depth not in self.depths:
            raise UserError(f'depth={depth}: CIFARResNet has the depths {", ".join(map(str, self.depths))}')
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        num_blocks = (depth - 2) // 6
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(num_blocks)))
        self.layer2 = self._build_stage(16, num_blocks)
        self.layer3 = self._build_stage(32, num_blocks)

    @staticmethod
    def _build_stage(in_channels: int, num_blocks: int) -> nn.Sequential:
        first = BasicBlock(in_channels, 2 * in_channels, stride=2, downsample=PaddedShortcut())
        return nn.Sequential(first, *(BasicBlock(2 * in_channels, 2 * in_channels) for _ in range(num_blocks - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Returns the map of the last stage."""
        x = self.relu(self.bn1(self.conv1(x)))
        return (self.layer3(self.layer2(self.layer1(x))),)
