"""Feature pyramid network with binary convolutions."""

from mmcv.cnn import ConvModule
from mmdet.models.necks import FPN
from torch import nn

from mmgroupnet.layers import RealValuedSkip
from mmgroupnet.models.arguments import layerwise_conv_cfg, refuse_options, require_norm
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class BinaryFPN(FPN):
    """FPN with layer-wise decomposed binary convs.

    Every lateral, output and extra conv is norm, sign, layer-wise binary conv, norm. Because of the norm in front of
    the sign, it works behind a stock backbone, which ends in a ReLU. Each output conv has a real-valued skip. All
    features of the backbone reach the pyramid through the laterals; binary laterals see only their signs.

    Args:
        in_channels: Channels of each input map.
        out_channels: Channels of the output maps.
        num_outs: Number of output maps.
        num_bases: Number K of bases of every conv.
        learned_scales: Learned scales of the bases in place of their mean. Default: False.
        norm_cfg: Config of all norms. Default: ``dict(type='BN')``.
        binary_cfg: Options of every binary conv: ``activation``, ``weight``, ``padding_value``, see
            :class:`BinaryConv2d`. Default: None.
        binary_laterals: Whether the 1x1 laterals are binary; False gives each a full-precision conv and a norm, as in
            the shortcuts of Group-Net**. Default: True.
        start_level, end_level, add_extra_convs, relu_before_extra_convs, upsample_cfg, init_cfg: As for mmdet's FPN.
        kwargs: None are allowed: ``conv_cfg``, ``act_cfg`` and ``no_norm_on_lateral`` of mmdet's FPN are refused.

    Source: Group-Net for detection (arXiv 1909.09934); the norms are those of its co-author's detectors.

    Raises:
        UserError: If one of the options is given that binary convs do not have, or ``norm_cfg`` is None.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int,
        num_bases: int,
        learned_scales: bool = False,
        norm_cfg: dict | None = dict(type='BN'),
        binary_cfg: dict | None = None,
        binary_laterals: bool = True,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        upsample_cfg: dict = dict(mode='nearest'),
        init_cfg: dict | list[dict] | None = None,
        **kwargs,
    ) -> None:
        refuse_options(self, ('conv_cfg', 'act_cfg', 'no_norm_on_lateral'), kwargs)
        norm_cfg = require_norm(self, norm_cfg)
        super().__init__(
            in_channels,
            out_channels,
            num_outs,
            start_level=start_level,
            end_level=end_level,
            add_extra_convs=add_extra_convs,
            relu_before_extra_convs=relu_before_extra_convs,
            conv_cfg=layerwise_conv_cfg(num_bases, learned_scales, norm_cfg, binary_cfg),
            norm_cfg=norm_cfg,
            act_cfg=None,
            upsample_cfg=upsample_cfg,
            init_cfg=init_cfg,
            **kwargs,
        )
        if not binary_laterals:
            self.lateral_convs = nn.ModuleList(
                ConvModule(in_channels[level], out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
                for level in range(self.start_level, self.backbone_end_level)
            )
        # Extra convs halve the size, so they cannot have a skip.
        for level in range(len(self.lateral_convs)):
            self.fpn_convs[level] = RealValuedSkip(self.fpn_convs[level])
