"""FCN head with binary convolutions, for use as decode head and as auxiliary head."""

from mmseg.models.decode_heads import FCNHead

from mmgroupnet.errors import UserError
from mmgroupnet.layers import RealValuedSkip
from mmgroupnet.models.arguments import layerwise_conv_cfg, refuse_options, require_norm
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class BinaryFCNHead(FCNHead):
    """FCN head with layer-wise decomposed binary convs; the classifier is in full precision.

    Every conv is norm, sign, layer-wise binary conv, norm. Each conv has a real-valued skip, except the first one and
    that of ``concat_input``, which change the number of channels.

    Args:
        num_bases: Number K of bases of every conv.
        learned_scales: Learned scales of the bases in place of their mean. Default: False.
        norm_cfg: Config of all norms. Default: ``dict(type='BN')``.
        binary_cfg: Options of every binary conv: ``activation``, ``weight``, ``padding_value``, see
            :class:`BinaryConv2d`. Default: None.
        args, kwargs: As for mmseg's FCNHead, except ``conv_cfg`` and ``act_cfg``, which are refused, and
            ``num_convs``, which is at least 1 (without convs nothing is binary: see :class:`FCNScoreHead`).

    Source: Group-Net, section 3.2 (layer-wise binary decomposition), used as DeepLab's auxiliary head.

    Raises:
        UserError: If ``conv_cfg`` or ``act_cfg`` is given, ``norm_cfg`` is None, or ``num_convs`` is below 1.
    """

    def __init__(
        self,
        *args,
        num_bases: int,
        learned_scales: bool = False,
        num_convs: int = 2,
        norm_cfg: dict | None = dict(type='BN'),
        binary_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        refuse_options(self, ('conv_cfg', 'act_cfg'), kwargs)
        norm_cfg = require_norm(self, norm_cfg)
        if num_convs < 1:
            raise UserError(f'num_convs={num_convs}: give at least 1, or take FCNScoreHead')
        super().__init__(
            *args,
            num_convs=num_convs,
            norm_cfg=norm_cfg,
            conv_cfg=layerwise_conv_cfg(num_bases, learned_scales, norm_cfg, binary_cfg),
            act_cfg=None,
            **kwargs,
        )
        for index in range(1, num_convs):
            self.convs[index] = RealValuedSkip(self.convs[index])
