import subprocess
import sys

import pytest
import torch
from mmdet.registry import MODELS

from mmgroupnet.layers import BinaryConv2d
from tests.batteries import BackboneBattery, assert_all_equal, assert_finite_gradients
from tests.liveness import BALANCED, assert_alive, binary_layer_calls, estimate_statistics, real_pictures

RESNET18 = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8)
# One stage with two blocks is enough: decompositions and kinds of shortcuts give different networks.
SHALLOW = dict(RESNET18, stage_blocks=(1, 2, 1, 1))
RESNET50 = dict(type='mmgroupnet.GroupNetResNet', depth=50, num_bases=2, base_channels=4, stage_blocks=(1, 2, 1, 2))


class TestResNet18(BackboneBattery):
    config = RESNET18
    out_channels = (8, 16, 32, 64)


class TestOneBase(BackboneBattery):
    config = dict(SHALLOW, num_bases=1)
    out_channels = (8, 16, 32, 64)
    idle_parameters = ('theta',)  # with one branch, the branch equals the merged map, so the gate has no effect


class TestLayerwise(BackboneBattery):
    config = dict(SHALLOW, decomposition='lbd', learned_scales=True)
    out_channels = (8, 16, 32, 64)


class TestGroupwiseBlocks(BackboneBattery):
    config = dict(SHALLOW, decomposition='gbd_v1', num_bases=3, learned_scales=True)
    out_channels = (8, 16, 32, 64)


class TestGroupwiseStages(BackboneBattery):
    config = dict(SHALLOW, decomposition='gbd_v2')
    out_channels = (8, 16, 32, 64)


class TestGroupwiseNetworks(BackboneBattery):
    config = dict(SHALLOW, decomposition='gbd_v3')
    out_channels = (8, 16, 32, 64)


class TestGatePerBranch(BackboneBattery):
    config = dict(SHALLOW, num_bases=3, gate_per_branch=True, learned_scales=True)
    out_channels = (8, 16, 32, 64)


class TestSumInPlace(BackboneBattery):
    config = dict(SHALLOW, in_place_sum=True, stem_bias=True)
    out_channels = (8, 16, 32, 64)


class TestRealValued(BackboneBattery):
    config = dict(SHALLOW, real_valued=True)
    out_channels = (8, 16, 32, 64)


class TestFullPrecisionDownsampling(BackboneBattery):
    config = dict(SHALLOW, binary_downsample=False, avg_down=True)
    out_channels = (8, 16, 32, 64)


class TestResNet34(BackboneBattery):
    config = dict(RESNET18, depth=34, stage_blocks=(2, 1, 3, 1))
    out_channels = (8, 16, 32, 64)


class TestResNet50(BackboneBattery):
    config = RESNET50
    out_channels = (16, 32, 64, 128)


class TestResNet50Atrous(BackboneBattery):
    """BPAC: output stride 8 and a different dilation rate for each branch."""

    config = dict(
        RESNET50, avg_down=True, binary_downsample=False, strides=(1, 2, 1, 1), dilations=(1, 1, 'bpac', 'bpac')
    )
    out_channels = (16, 32, 64, 128)
    out_strides = (4, 8, 8, 8)


class TestResNet18OutputStride16(BackboneBattery):
    config = dict(SHALLOW, strides=(1, 2, 2, 1), dilations=(1, 1, 1, [2, 5]))
    out_channels = (8, 16, 32, 64)
    out_strides = (4, 8, 16, 16)


class TestResNet20(BackboneBattery):
    """The ResNet for CIFAR-10."""

    config = dict(type='mmgroupnet.GroupNetResNet', depth=20, num_bases=2, stem='cifar', base_channels=8)
    input_shapes = ((3, 32, 32), (3, 17, 9), (3, 1, 2))
    out_channels = (8, 16, 32)
    out_strides = (1, 2, 4)

    def test_out_indices(self):
        every, last = self.build(), self.build(out_indices=(2,))
        assert_all_equal(self.run(last, self.inputs()), self.run(every, self.inputs())[2:])

    @pytest.mark.parametrize('frozen_stages', [-1, 0, 3])
    def test_frozen_stages(self, frozen_stages):
        super().test_frozen_stages(frozen_stages)


@pytest.mark.parametrize('num_bases', [1, 2, 5])
def test_bpac_by_name(num_bases):
    # The rates are 2 to K+1 in stage 3 and 6 to K+5 in stage 4; K = 5 gives the published rates 2-6 and 6-10.
    config = dict(RESNET18, num_bases=num_bases, strides=(1, 2, 1, 1), dilations=(1, 1, 'bpac', 'bpac'))
    backbone = MODELS.build(config)
    rates = [{unit.conv.branch_dilations() for block in stage for unit in block.units} for stage in backbone.stages]
    ones = (1,) * num_bases
    assert rates == [{ones}, {ones}, {tuple(range(2, num_bases + 2))}, {tuple(range(6, num_bases + 6))}]


def test_every_branch_has_its_own_receptive_field():
    """Measures the input region on which one pixel of the last map depends, for each branch with the others cut off.

    Norms are in eval mode, so only convs combine pixels. Tanh replaces the sign, so the gradient is not zero for any
    pixel that the forward pass uses.
    """
    num_bases = 3
    config = dict(
        RESNET18,
        num_bases=num_bases,
        decomposition='gbd_v3',
        real_valued=True,
        stage_blocks=(1, 1, 1, 1),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 'bpac', 'bpac'),
        out_indices=(3,),
        learned_scales=True,
    )
    torch.manual_seed(0)
    backbone = MODELS.build(config).double().eval()
    merge = backbone.stages[-1][-1].merge
    size = 65  # of the map; stages 3 and 4 do not change it
    extents = []
    for branch in range(num_bases):
        merge.scales.data.copy_(torch.eye(num_bases, dtype=torch.float64)[branch])
        x = torch.randn(1, num_bases * 16, size, size, dtype=torch.float64, requires_grad=True)
        out, last_merge = x, backbone.stages[1][-1].merge
        for block in (*backbone.stages[2], *backbone.stages[3]):
            out = block(out, last_merge)
            last_merge = block.merge
        (gradient,) = torch.autograd.grad(last_merge(out)[0, :, size // 2, size // 2].sum(), x)
        seen = gradient[0].abs().sum(0) > 0
        rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
        assert rows.tolist() == columns.tolist()
        extents.append(int(rows[-1] - rows[0]) + 1)
    # Each of the two blocks has two 3x3 convs, and each conv widens the field by twice its rate.
    assert extents == [1 + 2 * 2 * (2 + branch) + 2 * 2 * (6 + branch) for branch in range(num_bases)]


@pytest.mark.parametrize(
    'depth, num_blocks', [(18, 8), (34, 16), (50, 16), (101, 33), (20, 9), (32, 15), (44, 21), (56, 27)]
)
def test_blocks_of_each_depth(depth, num_blocks):
    backbone = MODELS.build(dict(RESNET18, depth=depth, num_bases=1, base_channels=2))
    assert sum(len(stage) for stage in backbone.stages) == num_blocks
    is_bottleneck = depth in (50, 101)
    shortcuts = len(backbone.stages) - (not is_bottleneck)
    convs = sum(isinstance(module, BinaryConv2d) for module in backbone.modules())
    assert convs == num_blocks * (3 if is_bottleneck else 2) + shortcuts


def test_published_number_of_parameters():
    # ResNet-18, K = 5, plain averaging: 55,662,127 with the classifier of 512 * 1000 + 1000.
    backbone = MODELS.build(dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=5))
    assert sum(parameter.numel() for parameter in backbone.parameters()) + 513_000 == 55_662_127


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(decomposition='lbd'),
        dict(decomposition='gbd_v1', learned_scales=True),
        dict(decomposition='gbd_v2'),
        dict(decomposition='gbd_v3'),
        dict(binary_downsample=False, avg_down=True),
        dict(depth=50, stage_blocks=(2, 2, 2, 2)),
        dict(binary_cfg=dict(activation=dict(type='mmgroupnet.ShiftedSign'), padding_value=-1)),
    ],
    ids=str,
)
def test_every_layer_is_alive(options):
    torch.manual_seed(0)
    backbone = MODELS.build(dict(RESNET18, **options))
    backbone.init_weights()
    pictures = (real_pictures(96, 128).float() - 127) / 60
    estimate_statistics(backbone, lambda: backbone(pictures.flip(3)))
    assert_alive(binary_layer_calls(backbone, lambda: backbone(pictures)), BALANCED)


def test_frozen_backbone_keeps_training_its_neighbours():
    # The output of a frozen stem needs no gradient. With recomputation the first block must get its gradients even so.
    backbone = MODELS.build(dict(RESNET18, frozen_stages=0, with_cp=True))
    sum(out.mean() for out in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert_finite_gradients(backbone)


def test_configs_need_no_custom_imports():
    code = f"""
import sys
from mmseg.registry import MODELS
assert 'mmgroupnet' not in sys.modules
print(type(MODELS.build({RESNET18!r})).__module__)
"""
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split()[-1] == 'mmgroupnet.models.backbones.groupnet_resnet'


def test_segments_and_classifies():
    """In models of mmseg and mmpretrain: all parameters get finite gradients, and there is a prediction for every pixel
    or image."""
    pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    from mmengine.config import ConfigDict
    from mmengine.structures import PixelData
    from mmpretrain.registry import MODELS as CLASSIFIERS
    from mmpretrain.structures import DataSample
    from mmseg.registry import MODELS as SEGMENTORS
    from mmseg.structures import SegDataSample

    segmentor = SEGMENTORS.build(
        dict(
            type='mmseg.EncoderDecoder',
            backbone=RESNET18,
            decode_head=dict(
                type='mmseg.FCNHead',
                in_channels=64,
                in_index=3,
                channels=8,
                num_convs=1,
                num_classes=4,
                norm_cfg=dict(type='BN'),
            ),
            test_cfg=ConfigDict(mode='whole'),
        )
    )
    images = torch.randn(2, 3, 64, 96)
    samples = [SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96))) for _ in images]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(4, (1, 64, 96)))
    segmentor.loss(images, samples)['decode.loss_ce'].backward()
    assert_finite_gradients(segmentor)
    segmentor.eval()
    assert [result.pred_sem_seg.shape for result in segmentor.predict(images, samples)] == [(64, 96)] * 2

    classifier = CLASSIFIERS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(RESNET18, out_indices=(3,)),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=64),
        )
    )
    labels = [DataSample().set_gt_label(label) for label in (1, 3)]
    classifier.loss(images, labels)['loss'].backward()
    assert_finite_gradients(classifier)
    assert [result.pred_score.shape for result in classifier.predict(images, labels)] == [(4,)] * 2


class TestBadArguments:
    @pytest.mark.parametrize(
        'options, message',
        [
            (dict(depth=19), 'depth=19.*18, 20, 32, 34, 44, 50, 56, 101'),
            (dict(stem='deep'), "stem='deep'.*'imagenet', 'cifar'"),
            (dict(num_bases=0), 'num_bases=0: .* an int >= 1'),
            (dict(decomposition='gbd_v4'), "decomposition='gbd_v4'.*'lbd'.*'gbd_v3'.*'soft_gate'"),
            (
                dict(decomposition='gbd_v1', gate_per_branch=True),
                "gate_per_branch=True: decomposition='gbd_v1' has no",
            ),
            (dict(decomposition='gbd_v1', in_place_sum=True), "in_place_sum=True, decomposition='gbd_v1'.*soft_gate"),
            (dict(learned_scales=True, in_place_sum=True), 'in_place_sum=True.*learned_scales=True.*without learned'),
            (dict(stage_blocks=(1, 0, 1, 1)), r'stage_blocks=\(1, 0, 1, 1\): every stage has at least one block'),
            (dict(strides=(1, 2)), r'strides=\(1, 2\) has 2 entries for 4 stages'),
            (dict(strides=(1, 2, 2, 0)), 'stride=0: give an int >= 1'),
            (dict(dilations=(1, 1, 1)), r'dilations=\(1, 1, 1\) has 3 entries for 4 stages'),
            (dict(dilations=(1, 'bpac', 2, 4)), r"dilations\[1\]='bpac'.*third and the fourth stage"),
            (dict(dilations=(1, 1, 'aspp', 4)), r"dilations\[2\]='aspp'.*an int, 2 ints, or"),
            (dict(dilations=(1, 1, 2, (1, 2, 3))), r'dilations\[3\] has 3 rates for num_bases=2: give one int for all'),
            (dict(dilations=(1, 1, 1, 0)), 'dilation=0: rates are ints >= 1'),
            (dict(dilations=(1, 1, 1, (1, 0))), r'dilation=\(1, 0\): rates are ints >= 1'),
            (dict(decomposition='lbd', dilations=(1, 1, 1, (1, 2))), r'dilation=\(1, 2\): .* give one int'),
            (dict(out_indices=(-1,)), r'out_indices=\(-1,\): there are the stages 0 to 3'),
            (dict(out_indices=(1, 4)), r'out_indices=\(1, 4\): there are the stages 0 to 3'),
            (dict(norm_cfg=None), 'norm_cfg=None: the signs of GroupNetResNet need a norm in front of them'),
            (dict(frozen_stages=-2), r'frozen_stages=-2: choose -1 \(none\), 0 \(the stem\) up to 4'),
            (dict(frozen_stages=5), r'frozen_stages=5: choose -1 \(none\), 0 \(the stem\) up to 4'),
            (
                dict(real_valued=True, binary_cfg=dict(weight=dict(type='mmgroupnet.RealWeight'))),
                'binary_cfg=.* names quantizers, which real_valued=True replaces',
            ),
            (dict(binary_cfg=dict(padding_value=3)), 'padding_value=3: a padded sign can be'),
        ],
        ids=str,
    )
    def test_values(self, options, message):
        with pytest.raises(ValueError, match=message):
            MODELS.build(dict(RESNET18, **options))

    @pytest.mark.parametrize('decomposition', ['lbd', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'soft_gate'])
    @pytest.mark.parametrize('key, value', [('num_bases', 3), ('padding', 1), ('paddingvalue', 1)])
    def test_options_that_are_not_those_of_every_conv(self, decomposition, key, value):
        with pytest.raises(TypeError, match=f"'{key}'"):
            MODELS.build(dict(RESNET18, decomposition=decomposition, binary_cfg={key: value}))

    @pytest.mark.parametrize('key', ['activation', 'weight'])
    def test_unknown_quantizer(self, key):
        with pytest.raises(KeyError, match='mmgroupnet.Nothing is not in the mmgroupnet::model registry'):
            MODELS.build(dict(RESNET18, binary_cfg={key: dict(type='mmgroupnet.Nothing')}))
