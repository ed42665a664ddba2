"""FCN-32s, FCN-16s and FCN-8s: predictions straight from the stages of a backbone."""

from collections.abc import Sequence

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.models.arguments import refuse_options
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class FCNScoreHead(BaseDecodeHead):
    """Full-precision predictions from one or several stages; coarser ones are upsampled bilinearly and added to finer
    ones.

    FCN-32s reads only the last stage (``in_index=3``), FCN-16s the third as well (``in_index=[2, 3]``). The names refer
    to the strides of a plain ResNet; mmseg upsamples the result to the image for any output stride.

    Args:
        in_channels: Channels of each stage, finest first; an int for one stage.
        in_index: Index of each stage among the backbone's outputs; an int for one stage. Default: -1.
        dropout_ratio, loss_decode, ignore_index, sampler, align_corners, out_channels, threshold: As for every decode
            head of mmseg.
        num_classes: Number of classes.

    Shape: maps ``(N, C_i, H_i, W_i)`` to logits ``(N, num_classes, H_0, W_0)`` of the finest stage that is read.

    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, section 4.2; Group-Net's
    segmentation experiments use FCN-32s and FCN-16s.

    Raises:
        UserError: If ``in_channels`` and ``in_index`` differ in length, or for options that only other heads have:
            ``channels``, ``input_transform``.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        *,
        num_classes: int,
        in_index: int | Sequence[int] = -1,
        init_cfg: dict | list[dict] | None = dict(
            type='Normal', std=0.01, override=[dict(name='conv_seg'), dict(name='finer_scores')]
        ),
        **kwargs,
    ) -> None:
        refuse_options(self, ('channels', 'input_transform'), kwargs, 'predicts straight from the stages of in_index')
        channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        indices = [in_index] if isinstance(in_index, int) else list(in_index)
        if len(channels) != len(indices) or not channels:
            raise UserError(f'in_channels={in_channels} and in_index={in_index}: give one entry per stage to both')
        super().__init__(
            channels,
            channels[-1],
            num_classes=num_classes,
            in_index=indices,
            input_transform='multiple_select',
            init_cfg=init_cfg,
            **kwargs,
        )
        # The base class's conv_seg predicts from the coarsest stage.
        self.finer_scores = nn.ModuleList(nn.Conv2d(width, self.out_channels, 1) for width in channels[:-1])

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Returns the logits, ``(N, num_classes, H_0, W_0)``."""
        *finer, coarsest = self._transform_inputs(inputs)
        scores = self.cls_seg(coarsest)
        for conv, x in zip(reversed(self.finer_scores), reversed(finer), strict=True):
            scores = resize(scores, x.shape[2:], mode='bilinear', align_corners=self.align_corners)
            scores = scores + conv(x if self.dropout is None else self.dropout(x))
        return scores
