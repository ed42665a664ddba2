"""Group-Net ResNets: LBD, GBD v1, v2, v3 and soft-gated share one code path and differ only in where branches merge."""

from collections.abc import Iterable, Sequence
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgroupnet.checkpoints.pretrained import check_pretrained
from mmgroupnet.errors import UserError
from mmgroupnet.layers import InPlaceMerge, Merge, SoftGate, build_merge
from mmgroupnet.models.arguments import require_norm
from mmgroupnet.models.backbones.groupnet_block import (
    BasicBlock,
    Bottleneck,
    BroadcastConnection,
    MergedConnection,
    SeparateConnection,
)
from mmgroupnet.models.backbones.stem import Stem
from mmgroupnet.registry import MODELS


@MODELS.register_module()
class GroupNetResNet(BaseModule):
    """ResNet in which every residual block is a group of K homogeneous binary branches (Group-Net).

    The stem is full precision, everything else binary.

    Args:
        depth: 18, 34, 50 or 101; or 20, 32, 44 or 56, the three-stage ResNets of CIFAR-10 (``stem='cifar'`` and
            ``base_channels=16`` belong to these).
        num_bases: Number K of bases, at least 1.
        decomposition: What is decomposed into K binary bases (Group-Net, section 3). Default: 'soft_gate'.

            - 'lbd': every conv is a sum of K binary ones, see :class:`LayerwiseBinaryConv2d`;
            - 'gbd_v1': every block is the merge of K binary blocks;
            - 'gbd_v2': every stage is the merge of K chains of blocks;
            - 'gbd_v3': K networks, merged at the end;
            - 'soft_gate': blocks as in v1, with a learned connection between v1 and v3 in front of each.
        gate_per_branch: One soft gate per block and branch (the paper) in place of one per block (the released code).
            Default: False.
        learned_scales: Merges with a learned scale per branch in place of the mean. Default: False.
        in_place_sum: Branch 0 of every block passes the sum of all K outputs to the next block, ``x_0 = c * sum_j G_j +
            (1 - c) * mean``, see :class:`mmgroupnet.layers.InPlaceMerge`. The released code does so with soft gates and
            without learned scales, and so does the checkpoint that was published with it. Use it only for that
            checkpoint. Default: False.
        in_channels: Channels of the image. Default: 3.
        stem: The layers in front of the first stage. Default: 'imagenet'.

            - 'imagenet': 7x7 conv of stride 2, max pooling of stride 2, norm;
            - 'cifar': 3x3 conv, norm, for images of about 32x32 pixels.
        stem_bias: Whether the conv of the stem has a bias. Default: False.
        base_channels: Channels of the stem and of the first stage. Default: 64.
        stage_blocks: Number of blocks of each stage. Default: None, the numbers of ``depth``.
        strides: Stride of the first block of each stage; ``(1, 2, 1, 1)`` has output stride 8, ``(1, 2, 2, 1)`` 16.
            Default: None, 1 for the first stage and 2 for the others.
        dilations: Dilation of the 3x3 convs of each stage: an int; K ints, one rate per branch; or 'bpac', the rates of
            binary parallel atrous convolution for any K (2 to K+1 in the third stage, 6 to K+5 in the fourth). Default:
            None, 1 each.
        out_indices: Stages whose merged maps are returned. Default: None, all.
        binary_downsample: Binary 1x1 convs in the shortcuts that change the shape; False is Group-Net**. Default: True.
        avg_down: Average pooling in front of these convs instead of their stride. Default: False.
        frozen_stages: Stages to freeze: -1 none, 0 the stem, i the stem and the first i stages. Default: -1.
        norm_eval: Keeps batch norms in eval mode. Default: False.
        norm_cfg: Config of the norms; ``num_groups`` of a ``GN`` counts the groups of one branch. Default:
            ``dict(type='BN')``.
        binary_cfg: Options of every binary conv: ``activation``, ``weight``, ``padding_value``, see
            :class:`BinaryConv2d`. Default: None.
        real_valued: First training stage: tanh and real weights instead of signs, with the same parameter names.
            Default: False.
        with_cp: Recomputes blocks in the backward pass to save memory. Default: False.
        init_cfg: Initialisation. Default: Kaiming for full-precision convs; binary convs initialise their latent
            weights themselves, with Kaiming as well. A checkpoint, ``dict(type='Pretrained', checkpoint=...,
            prefix='backbone.')``, has to hold exactly the weights of this backbone under its prefix. Strides, dilations
            and ``out_indices`` may differ from those of its training. The exception is 'gbd_v3' with learned scales,
            where only the stages of ``out_indices`` have scales.

    Shape: ``(N, in_channels, H, W)`` to a tuple of merged maps ``(N, C, H_i, W_i)``, real-valued and signed (there is
    no final ReLU).

    Raises:
        UserError: If an argument is out of its range; the message names it, its value and what is allowed.
    """

    arch_settings: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        20: (BasicBlock, (3, 3, 3)),
        32: (BasicBlock, (5, 5, 5)),
        34: (BasicBlock, (3, 4, 6, 3)),
        44: (BasicBlock, (7, 7, 7)),
        50: (Bottleneck, (3, 4, 6, 3)),
        56: (BasicBlock, (9, 9, 9)),
        101: (Bottleneck, (3, 4, 23, 3)),
    }
    decompositions = ('lbd', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'soft_gate')
    stems = ('imagenet', 'cifar')
    # The smallest rate of BPAC by stage (counted from 0); branch i adds i to it.
    bpac_first_rates = {2: 2, 3: 6}

    def __init__(
        self,
        depth: int,
        num_bases: int,
        decomposition: str = 'soft_gate',
        gate_per_branch: bool = False,
        learned_scales: bool = False,
        in_place_sum: bool = False,
        in_channels: int = 3,
        stem: str = 'imagenet',
        stem_bias: bool = False,
        base_channels: int = 64,
        stage_blocks: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int | str | Sequence[int]] | None = None,
        out_indices: Sequence[int] | None = None,
        binary_downsample: bool = True,
        avg_down: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = dict(type='BN'),
        binary_cfg: dict | None = None,
        real_valued: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        self.decomposition = decomposition
        self.learned_scales = learned_scales
        self.in_place_sum = in_place_sum
        self.gate_per_branch = gate_per_branch
        self.norm_eval = norm_eval
        self._check_choices(depth, num_bases, stem)
        norm_cfg = require_norm(self, norm_cfg)
        block, depth_blocks = self.arch_settings[depth]
        stage_blocks = depth_blocks if stage_blocks is None else stage_blocks
        num_stages = len(stage_blocks)
        strides = (1,) + (2,) * (num_stages - 1) if strides is None else strides
        dilations = (1,) * num_stages if dilations is None else dilations
        self.out_indices = tuple(range(num_stages) if out_indices is None else out_indices)
        self.frozen_stages = frozen_stages
        self._check_stages(stage_blocks, strides, dilations)
        dilations = [self._branch_rates(stage, rates, num_bases) for stage, rates in enumerate(dilations)]

        # LBD decomposes inside the convs, so its blocks have one branch; the rest of the path is the same.
        self.num_branches = 1 if decomposition == 'lbd' else num_bases
        conv_cfg, shared_cfg = self._conv_cfgs(num_bases, binary_cfg or {}, real_valued)
        self.stem = self._build_stem(stem, in_channels, base_channels, stem_bias, norm_cfg)
        self.stages = nn.ModuleList()
        channels_in = base_channels
        for stage, num_blocks in enumerate(stage_blocks):
            channels = base_channels * 2**stage
            blocks = self._build_stage(
                stage,
                block,
                num_blocks,
                channels_in,
                channels,
                strides[stage],
                unit_options=dict(
                    dilation=dilations[stage], num_branches=self.num_branches, conv_cfg=conv_cfg, norm_cfg=norm_cfg
                ),
                shortcut_options=dict(
                    conv_cfg=shared_cfg if binary_downsample else None, norm_cfg=norm_cfg, avg_down=avg_down
                ),
                with_cp=with_cp,
            )
            self.stages.append(blocks)
            channels_in = channels * block.expansion
        self._freeze_stages()

    def _check_choices(self, depth: int, num_bases: int, stem: str) -> None:
        """Checks the arguments that define the network."""
        if depth not in self.arch_settings:
            raise UserError(f'depth={depth!r}: GroupNetResNet has the depths {", ".join(map(str, self.arch_settings))}')
        if num_bases < 1:
            raise UserError(f'num_bases={num_bases}: give the number of binary bases, an int >= 1')
        decomposition = self.decomposition
        if decomposition not in self.decompositions:
            raise UserError(
                f'decomposition={decomposition!r}: choose one of {", ".join(map(repr, self.decompositions))}'
            )
        if self.gate_per_branch and decomposition != 'soft_gate':
            raise UserError(f"gate_per_branch=True: decomposition={decomposition!r} has no gates, only 'soft_gate' has")
        if self.in_place_sum and (decomposition != 'soft_gate' or self.learned_scales):
            raise UserError(
                f'in_place_sum=True, decomposition={decomposition!r}, learned_scales={self.learned_scales}: the sum is '
                "that of decomposition='soft_gate' without learned scales"
            )
        if stem not in self.stems:
            raise UserError(f'stem={stem!r}: choose one of {", ".join(map(repr, self.stems))}')

    def _check_stages(self, stage_blocks: Sequence[int], strides: Sequence[int], dilations: Sequence) -> None:
        """Checks the arguments with one entry per stage."""
        num_stages = len(stage_blocks)
        if not all(num_blocks >= 1 for num_blocks in stage_blocks):
            raise UserError(f'stage_blocks={tuple(stage_blocks)}: every stage has at least one block')
        for name, values in (('strides', strides), ('dilations', dilations)):
            if len(values) != num_stages:
                raise UserError(f'{name}={values} has {len(values)} entries for {num_stages} stages')
        if not all(0 <= index < num_stages for index in self.out_indices):
            raise UserError(f'out_indices={self.out_indices}: there are the stages 0 to {num_stages - 1}')
        if not -1 <= self.frozen_stages <= num_stages:
            raise UserError(f'frozen_stages={self.frozen_stages}: choose -1 (none), 0 (the stem) up to {num_stages}')

    def _conv_cfgs(self, num_bases: int, binary_cfg: dict, real_valued: bool) -> tuple[dict, dict]:
        """Configs of the convs of the branches, and of the convs that the branches share."""
        if real_valued:
            if {'activation', 'weight'} & binary_cfg.keys():
                raise UserError(
                    f'binary_cfg={binary_cfg} names quantizers, which real_valued=True replaces: leave one out'
                )
            binary_cfg = dict(
                binary_cfg, activation=dict(type='mmgroupnet.Tanh'), weight=dict(type='mmgroupnet.RealWeight')
            )
        if self.decomposition == 'lbd':
            cfg = dict(
                type='mmgroupnet.LayerwiseBinaryConv2d',
                num_bases=num_bases,
                learned_scales=self.learned_scales,
                **binary_cfg,
            )
            return cfg, cfg
        shared_cfg = dict(type='mmgroupnet.BinaryConv2d', num_bases=1, **binary_cfg)
        return dict(shared_cfg, num_bases=num_bases), shared_cfg

    @classmethod
    def _branch_rates(cls, stage: int, rates: int | str | Sequence[int], num_bases: int) -> int | tuple[int, ...]:
        """The dilation of a stage: one for all branches, or one per branch."""
        if isinstance(rates, int):
            return rates
        if isinstance(rates, str):
            first_rate = cls.bpac_first_rates.get(stage)
            if rates != 'bpac' or first_rate is None:
                raise UserError(
                    f'dilations[{stage}]={rates!r}: give an int, {num_bases} ints, or, in the third and the fourth '
                    "stage, 'bpac'"
                )
            return tuple(range(first_rate, first_rate + num_bases))
        if len(rates) != num_bases:
            raise UserError(
                f'dilations[{stage}] has {len(rates)} rates for num_bases={num_bases}: give one int for all '
                'branches or one rate per branch.'
            )
        return tuple(rates)

    @staticmethod
    def _build_stem(stem: str, in_channels: int, out_channels: int, bias: bool, norm_cfg: dict) -> Stem:
        layers: list[nn.Module]
        if stem == 'cifar':
            layers = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)]
        else:
            layers = [
                nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=bias),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        return Stem(*layers, build_norm_layer(norm_cfg, out_channels)[1])

    def _build_stage(
        self,
        stage: int,
        block: type[BasicBlock | Bottleneck],
        num_blocks: int,
        in_channels: int,
        channels: int,
        stride: int,
        unit_options: dict,
        shortcut_options: dict,
        with_cp: bool,
    ) -> nn.ModuleList:
        """The blocks of a stage; the first one has the stride."""
        blocks = nn.ModuleList()
        out_channels = channels * block.expansion
        for index in range(num_blocks):
            units = block.build_units(in_channels, channels, stride, **unit_options)
            shortcut = None
            if stride != 1 or in_channels != out_channels:
                shortcut = self._build_shortcut(in_channels, out_channels, stride, **shortcut_options)
            merge = self._build_merge(stage, is_last=index == num_blocks - 1)
            blocks.append(block(self._build_connection(stage, index), units, shortcut, merge, with_cp))
            in_channels, stride = out_channels, 1
        return blocks

    def _build_merge(self, stage: int, is_last: bool) -> Merge:
        """The merge behind a block."""
        if self.in_place_sum:
            return InPlaceMerge(self.num_branches)
        # A block whose branches are not merged must not own scales: they would never get a gradient.
        is_merged = self.decomposition in ('gbd_v1', 'soft_gate') or (
            is_last and (self.decomposition == 'gbd_v2' or stage in self.out_indices)
        )
        return build_merge(self.num_branches, self.learned_scales and is_merged and self.decomposition != 'lbd')

    def _build_connection(self, stage: int, index: int) -> nn.Module:
        """The connection in front of a block, in which alone the decompositions differ."""
        if stage == 0 and index == 0:
            return BroadcastConnection(self.num_branches)
        if self.decomposition in ('lbd', 'gbd_v3') or (self.decomposition == 'gbd_v2' and index > 0):
            return SeparateConnection()
        if self.decomposition == 'soft_gate':
            return SoftGate(self.num_branches if self.gate_per_branch else 1)
        return MergedConnection()

    @staticmethod
    def _build_shortcut(
        in_channels: int, out_channels: int, stride: int, conv_cfg: dict | None, norm_cfg: dict, avg_down: bool
    ) -> nn.Sequential:
        layers: list[nn.Module] = []
        if avg_down:
            # Odd sizes round up, as in a padded 3x3 conv with this stride. Without a stride, as at output stride 8, the
            # conv keeps its name, because a classifier has trained it under that name.
            pooling = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            layers.append(nn.Identity() if stride == 1 else pooling)
            stride = 1
        layers.append(build_conv_layer(conv_cfg, in_channels, out_channels, 1, stride=stride, bias=False))
        layers.append(build_norm_layer(norm_cfg, out_channels)[1])
        return nn.Sequential(*layers)

    def init_weights(self) -> None:
        """Initialises the weights as ``init_cfg`` says.

        Raises:
            UserError: If a pretrained checkpoint does not hold exactly the weights of this backbone.
        """
        try:
            check_pretrained(self)
        except UserError as error:
            if self.decomposition != 'gbd_v3' or 'merge.scales' not in str(error):
                raise
            raise UserError(
                f"{error}. decomposition='gbd_v3' has learned scales only for the stages of "
                f'out_indices={self.out_indices}: train the backbone with the same ones, or without learned scales'
            ) from error
        super().init_weights()

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'GroupNetResNet':
        """Sets training mode, except for frozen stages and, with ``norm_eval``, batch norms."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the merged maps of the stages in ``out_indices``."""
        branches = self.stem(x)
        merge: Any = None  # The first block has nothing to merge.
        outs = []
        stages: Iterable[Any] = self.stages  # lists of blocks
        for stage, blocks in enumerate(stages):
            for block in blocks:
                branches = block(branches, merge)
                merge = block.merge
            if stage in self.out_indices:
                outs.append(merge(branches))
        return tuple(outs)
