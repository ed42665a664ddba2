"""DeepLabV3's head with binary atrous convolutions."""

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmseg.models.decode_heads import ASPPHead
from torch import nn

from mmgroupnet.models.arguments import layerwise_conv_cfg, refuse_options, require_norm
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class BinaryASPPHead(ASPPHead):
    """Atrous spatial pyramid pooling with layer-wise decomposed binary convs; the classifier is in full precision.

    The atrous branches and the conv behind them are norm, sign, layer-wise binary conv, norm. The branch of the image's
    mean is norm, pooling, sign, conv: its norm is in front of the pooling, where a channel still has one value per
    pixel, and the conv behind all branches brings the norm for its output. So the head also trains on a single image.

    Args:
        num_bases: Number K of bases of every conv.
        learned_scales: Learned scales of the bases in place of their mean. Default: False.
        norm_cfg: Config of all norms. Default: ``dict(type='BN')``.
        binary_cfg: Options of every binary conv: ``activation``, ``weight``, ``padding_value``, see
            :class:`BinaryConv2d`. Default: None.
        args, kwargs: As for mmseg's ASPPHead (``dilations`` by default 1, 6, 12, 18), except ``conv_cfg`` and
            ``act_cfg``, which are refused.

    Source: Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation (DeepLabV3), 2017; Group-Net,
    section 3.2 (layer-wise binary decomposition).

    Raises:
        UserError: If ``conv_cfg`` or ``act_cfg`` is given, or ``norm_cfg`` is None.
    """

    def __init__(
        self,
        *args,
        num_bases: int,
        learned_scales: bool = False,
        norm_cfg: dict | None = dict(type='BN'),
        binary_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        refuse_options(self, ('conv_cfg', 'act_cfg'), kwargs)
        norm_cfg = require_norm(self, norm_cfg)
        conv_cfg = layerwise_conv_cfg(num_bases, learned_scales, norm_cfg, binary_cfg)
        super().__init__(*args, norm_cfg=norm_cfg, conv_cfg=conv_cfg, act_cfg=None, **kwargs)
        self.image_pool = nn.Sequential(
            build_norm_layer(norm_cfg, self.in_channels)[1],
            nn.AdaptiveAvgPool2d(1),
            build_conv_layer(dict(conv_cfg, input_norm=None), self.in_channels, self.channels, 1),
        )
