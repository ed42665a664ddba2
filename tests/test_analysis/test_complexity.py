"""Operation and parameter counts against values computed by hand."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmgroupnet
from mmgroupnet.analysis.complexity import analyze, by_part, table, total
from mmgroupnet.layers import BinaryConv2d, BinaryLinear, LayerwiseBinaryConv2d


def counts(model: nn.Module, *shape: int) -> tuple[int, int]:
    """Numbers of float and of binary operations."""
    row = total(analyze(model, lambda: model(torch.zeros(shape))))
    return row.flops, row.bops


class TestOperations:
    def test_float_layers(self):
        assert counts(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 2, 4, 8, 10) == (2 * 6 * 4 * 5 * 2 * 9, 0)
        assert counts(nn.ConvTranspose2d(4, 6, 2, stride=2), 1, 4, 3, 5) == (4 * 3 * 5 * 6 * 4, 0)
        assert counts(nn.Linear(4, 6), 2, 7, 4) == (2 * 7 * 4 * 6, 0)

    def test_binary_layers(self):
        folded = BinaryConv2d(4, 6, 3, padding=1, num_bases=3, groups=2)
        assert counts(folded, 2, 12, 5, 7) == (0, 3 * 2 * 6 * 5 * 7 * 2 * 9)
        merged = LayerwiseBinaryConv2d(4, 6, 3, padding=1, num_bases=3)
        assert counts(merged, 2, 4, 5, 7) == (0, 3 * 2 * 6 * 5 * 7 * 4 * 9)
        assert counts(BinaryLinear(4, 6), 2, 7, 4) == (0, 2 * 7 * 4 * 6)

    def test_a_layer_that_is_called_twice(self):
        conv = nn.Conv2d(2, 2, 1)
        assert counts(nn.Sequential(conv, conv), 1, 2, 3, 3) == (2 * 2 * 2 * 9, 0)

    def test_attention(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

            def forward(self, x):
                return self.attention(x, x, x)[0]

        length, width = 5, 8
        projections = 4 * length * width * width
        assert counts(Attention(), 1, length, width) == (projections + 2 * length * length * width, 0)

    def test_deformable(self):
        from mmcv.ops import ModulatedDeformConv2dPack

        conv = ModulatedDeformConv2dPack(4, 6, 3, padding=1, bias=False)
        offsets = 27 * 5 * 7 * 4 * 9
        assert counts(conv, 1, 4, 5, 7) == (offsets + 6 * 5 * 7 * 4 * 9, 0)

    def test_nothing_is_computed_or_changed(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        counts(model, 1, 3, 8, 8)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class TestParameters:
    def test_bits_and_bytes(self):
        conv = BinaryConv2d(3, 5, 3, bias=True, num_bases=2, input_norm=dict(type='BN'))
        row = total(analyze(conv))
        weights, norm = 2 * 5 * 3 * 9, 2 * 3
        assert row.parameters == weights + 10 + 2 * norm and row.binary_parameters == weights
        others = 4 * (10 + 4 * norm) + 8  # bias of the conv; weight, bias, mean, variance and counter of the norm
        assert row.bytes_now == 4 * weights + others
        assert row.bytes_packed == 10 * 4 + others  # 27 bits take 4 bytes
        assert (row.binary_layers, row.float_layers) == (1, 0)

    def test_shared_parameters_count_once(self):
        conv = nn.Conv2d(2, 2, 1, bias=False)
        assert total(analyze(nn.ModuleList([conv, nn.Sequential(conv)]))).parameters == 4


# ResNet-18 at 224x224 by hand: the convs and the shortcut of each stage, on maps of 56x56 to 7x7.
STEM = 64 * 3 * 49 * 112**2
STAGES = [4 * 64 * 64 * 9 * 56**2] + [
    (c * c // 2 * 9 + 3 * c * c * 9 + c * c // 2) * size**2 for c, size in ((128, 28), (256, 14), (512, 7))
]
HEAD = 512 * 1000


def classifier(**backbone) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=backbone,
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=512),
            )
        )


def resnet18_rows(**backbone):
    model = classifier(**backbone)
    return by_part(model, analyze(model, lambda: model(torch.zeros(1, 3, 224, 224))))


class TestResNet18:
    def test_float(self):
        rows = resnet18_rows(type='mmpretrain.ResNet', depth=18)
        assert [row.flops for row in rows] == [STEM, *STAGES, HEAD]
        whole = total(rows)
        assert whole.flops == 1_814_073_344 and whole.bops == 0
        assert whole.ops == pytest.approx(1.8e9, rel=0.01)
        assert whole.parameters == 11_689_512
        assert whole.linear_share == pytest.approx(HEAD / whole.flops)

    @pytest.mark.parametrize(('num_bases', 'ops'), [(1, 1.45e8), (5, 2.5e8)])
    def test_group_net(self, num_bases, ops):
        options = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=num_bases, out_indices=(3,))
        rows = resnet18_rows(**options)
        assert [row.flops for row in rows] == [STEM, 0, 0, 0, 0, HEAD]
        # The branches share the weights of the shortcut, but it runs once per branch.
        assert [row.bops for row in rows] == [0, *(num_bases * stage for stage in STAGES), 0]
        assert total(rows).ops == STEM + HEAD + num_bases * sum(STAGES) / 64
        assert total(rows).ops == pytest.approx(ops, rel=0.005)
        if num_bases == 5:
            assert total(rows).parameters == 55_662_127

    def test_the_first_of_two_training_stages_is_real_valued(self):
        options = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, out_indices=(3,), real_valued=True)
        rows = resnet18_rows(**options)
        assert [row.flops for row in rows] == [STEM, *(2 * stage for stage in STAGES), HEAD]
        whole = total(rows)
        assert whole.bops == whole.binary_parameters == whole.binary_layers == 0
        assert whole.bytes_packed == whole.bytes_now

    def test_a_binarised_stock_model_has_the_same_operations(self):
        model = classifier(type='mmpretrain.ResNet', depth=18)
        policy = [
            dict(become='keep', names=['backbone.conv1', 'head.fc']),
            dict(become='groupwise', types='BasicBlock', num_bases=5),
        ]
        mmgroupnet.binarize(model, policy)
        rows = by_part(model, analyze(model, lambda: model(torch.zeros(1, 3, 224, 224))))
        assert [row.bops for row in rows] == [0, *(5 * stage for stage in STAGES), 0]
        assert total(rows).ops == STEM + HEAD + 5 * sum(STAGES) / 64


def test_table():
    lines = table(resnet18_rows(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=1, out_indices=(3,))).splitlines()
    assert lines[0].split() == [
        'part', 'binary', 'layers', 'float', 'layers', 'parameters', '1-bit', 'MB', 'MB', 'packed', 'FLOPs', 'BOPs',
        'OPs', 'in', 'linears',
    ]  # fmt: skip
    assert lines[1].split()[0] == 'backbone.stem' and lines[2].split()[0] == 'backbone.stages.0'
    assert lines[-1].split()[:3] == ['total', '19', '2']
