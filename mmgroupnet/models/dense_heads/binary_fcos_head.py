"""FCOS head with binary towers."""

from typing import Any

from mmdet.models.dense_heads import FCOSHead
from mmdet.models.utils import multi_apply
from torch import Tensor, nn

from mmgroupnet.errors import UserError
from mmgroupnet.layers import (
    BinaryConv2d,
    Chain,
    ChainUnit,
    broadcast,
    build_branch_norm,
    build_merge,
    can_run_chain,
    is_as_written,
    run_chain,
)
from mmgroupnet.layers.packed import NotPackable, Packable, PackedChain, PackedTower, Packing, find_twin, pack_unit
from mmgroupnet.models.arguments import refuse_options, require_norm
from mmgroupnet.ops import Connection, Residual
from mmgroupnet.registry import MODELS


class BinaryTower(Packable):
    """Tower of K binary branches, merged once at its end; pyramid levels share its convs, but each has its own norms.

    The tower is a norm of the input, broadcast to the branches, then ``num_convs`` times (sign, 3x3 conv, ReLU, norm,
    plus the input of the conv), then the merge. Each level has its own batch norms, since the statistics of the levels
    differ and a sign cannot correct them.

    Args:
        in_channels: Channels of the pyramid.
        channels: Channels of a branch.
        num_convs: Number of convs.
        num_levels: Number of pyramid levels.
        num_bases: Number K of branches.
        learned_scales: Learned scales of the branches in place of their mean.
        norm_cfg: Config of the norms.
        binary_cfg: Options of every binary conv.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_convs: int,
        num_levels: int,
        num_bases: int,
        learned_scales: bool,
        norm_cfg: dict,
        binary_cfg: dict,
    ) -> None:
        super().__init__()

        def norm_per_level(num_branches: int, num_channels: int) -> nn.ModuleList:
            return nn.ModuleList(build_branch_norm(norm_cfg, num_branches, num_channels) for _ in range(num_levels))

        # A stock neck may end in a ReLU, behind which the first sign would be constant.
        self.input_norms = norm_per_level(1, in_channels)
        self.convs = nn.ModuleList(
            BinaryConv2d(in_channels if i == 0 else channels, channels, 3, padding=1, num_bases=num_bases, **binary_cfg)
            for i in range(num_convs)
        )
        self.norms = nn.ModuleList(norm_per_level(num_bases, channels) for _ in range(num_convs))
        self.residuals = [
            Residual.INPUT if conv.in_channels == conv.out_channels else Residual.NONE for conv in self.convs
        ]
        self.relu = nn.ReLU()
        self.merge = build_merge(num_bases, learned_scales)

    def packed_twin(self, packing: Packing) -> PackedTower:
        if not (is_as_written(self, BinaryTower) and self.has_standard_parts):
            raise NotPackable(f'{type(self).__name__} or one of its parts has a forward of its own')
        levels = []
        for level in range(len(self.input_norms)):
            units = [pack_unit(packing, *unit) for unit in self.chain(level).units]
            levels.append(PackedChain(Connection.BROADCAST, self.merge.num_bases, units))
        return PackedTower(self.input_norms, levels, self.merge.packed_twin(packing))

    def forward(self, feature_and_level: tuple[Tensor, int]) -> Tensor:
        """Maps ``((N, in_channels, H, W), level)`` to ``(N, channels, H, W)``."""
        x, level = feature_and_level
        twin = find_twin(self, x)
        if twin is not None:
            return twin(feature_and_level)
        x = self.input_norms[level](x)
        chain = self.chain(level)
        bypassed = [self.relu, *(part for unit in chain.units for part in (unit.conv, unit.norm))]
        if self.has_standard_parts and can_run_chain(chain, x, self, bypassed):
            return self.merge(run_chain(chain, x))
        x = broadcast(x, self.merge.num_bases)
        for unit in chain.units:
            out = unit.norm(self.relu(unit.conv(x)))
            x = out + x if unit.residual == Residual.INPUT else out
        return self.merge(x)

    @property
    def has_standard_parts(self) -> bool:
        """Whether the parts that a chain replaces compute the same as this class."""
        return is_as_written(self.relu, nn.ReLU)

    def chain(self, level: int) -> Chain:
        """The units of a pyramid level."""
        norms: Any = self.norms  # a list of modules for each conv
        units = (
            ChainUnit(conv, of_levels[level], residual=residual)
            for conv, of_levels, residual in zip(self.convs, norms, self.residuals, strict=True)
        )
        return Chain(tuple(units), self.merge.num_bases)


@MODELS.register_module()
class BinaryFCOSHead(FCOSHead):
    """FCOS head whose two towers are K binary branches, see :class:`BinaryTower`; predictions are in full precision.

    Args:
        num_bases: Number K of branches.
        learned_scales: Merges with a learned scale per branch in place of the mean. Default: False.
        norm_cfg: Config of the towers' norms; ``num_groups`` of a ``GN`` counts the groups of one branch. Default:
            ``dict(type='BN')``.
        binary_cfg: Options of every binary conv: ``activation``, ``weight``, ``padding_value``, see
            :class:`BinaryConv2d`. Default: None.
        args, kwargs: As for mmdet's FCOSHead, except ``conv_cfg``, ``conv_bias`` and ``dcn_on_last_conv``, which are
            refused.

    Source: Group-Net for detection (arXiv 1909.09934); convs shared by the levels and norms per level as in its
    co-author's detectors.

    Raises:
        UserError: If one of the options is given that binary towers do not have, ``norm_cfg`` is None, or a tower has
            no conv.
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
        refuse_options(self, ('conv_cfg', 'conv_bias', 'dcn_on_last_conv'), kwargs)
        norm_cfg = require_norm(self, norm_cfg)
        self.num_bases = num_bases
        self.learned_scales = learned_scales
        self.binary_cfg = binary_cfg or {}
        super().__init__(*args, norm_cfg=norm_cfg, **kwargs)
        if self.stacked_convs < 1:
            raise UserError(f'stacked_convs={self.stacked_convs}: a binary tower has at least 1 conv')

    def _build_tower(self) -> nn.ModuleList:
        return nn.ModuleList(
            [
                BinaryTower(
                    self.in_channels,
                    self.feat_channels,
                    self.stacked_convs,
                    len(self.strides),
                    self.num_bases,
                    self.learned_scales,
                    self.norm_cfg,
                    self.binary_cfg,
                )
            ]
        )

    def _init_cls_convs(self) -> None:
        self.cls_convs = self._build_tower()

    def _init_reg_convs(self) -> None:
        self.reg_convs = self._build_tower()

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As for mmdet's FCOSHead.

        The inherited ``forward_single`` passes its feature only to the towers, which also need to know the level.
        """
        features_and_levels = [(feature, level) for level, feature in enumerate(x)]
        return multi_apply(self.forward_single, features_and_levels, self.scales, self.strides)
