"""Packed models against simulated ones, layer by layer: each packed layer gets the inputs of its simulated twin."""

import copy
import pickle
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmgroupnet.deploy import pack, pack_and_report
from mmgroupnet.layers import BinaryConv2d, BinaryLinear, LayerwiseBinaryConv2d, LayerwiseBinaryLinear
from mmgroupnet.layers.packed import PackedChain, PackedModule, PackedUnit
from mmgroupnet.models.backbones.groupnet_block import BinaryUnit
from mmgroupnet.ops import Connection
from tests.liveness import estimate_statistics, real_pictures
from tests.test_models.test_combinations import BACKBONES, HEADS, NECKS
from tests.test_models.test_combinations import build as build_detector
from tests.test_models.test_segmentors import HEADS as SEGMENTATION_HEADS
from tests.test_models.test_segmentors import build as build_segmentor

pytestmark = pytest.mark.usefixtures('simulated_layers')

# Relative to the standard deviation of a layer's output: the allowed rounding error, and the largest magnitude at which
# a sign may differ.
TOLERANCE = 1e-5


def pictures(height: int = 65, width: int = 97) -> Tensor:
    return (real_pictures(height, width).float() - 120) / 60


def as_trained(model: nn.Module) -> nn.Module:
    """Gives the norms random weights and biases. Behind a binary conv a channel has few different values, and one may
    equal its mean over two small pictures. A fresh norm maps it to zero, and rounding would decide its sign."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


def build_backbone(**options) -> nn.Module:
    """A small backbone whose norms have the statistics of real pictures, as after training."""
    torch.manual_seed(0)
    config = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=3, base_channels=16)
    backbone = MODELS.build({**config, **options})
    estimate_statistics(backbone, lambda: backbone(pictures()))
    return as_trained(backbone)


def calls_of_twins(model: nn.Module, packed: nn.Module, run) -> list[tuple[str, nn.Module, tuple, Tensor]]:
    """For every call of a simulated layer that was packed: its name, the packed layer, and the inputs and output of the
    simulated one."""
    names = {module: name for name, module in model.named_modules()}
    twins: dict[str, nn.Module] = {}
    for name, twin in packed.named_modules():
        is_part = any(name.startswith(f'{whole}.') for whole in twins)
        if isinstance(twin, PackedModule) and not is_part:
            twins[name] = twin
    calls, handles = [], []
    for name, twin in twins.items():

        def record(module: nn.Module, inputs: tuple, out: Tensor, name: str = name, twin: nn.Module = twin) -> None:
            inputs = tuple(
                packed.get_submodule(names[value]) if isinstance(value, nn.Module) else copy.deepcopy(value)
                for value in inputs
            )
            calls.append((name, twin, inputs, out.detach().clone()))

        handles.append(model.get_submodule(name).register_forward_hook(record))
    with torch.no_grad():
        run(model)
    for handle in handles:
        handle.remove()
    return calls


def assert_agrees(name: str, out: Tensor, expected: Tensor) -> None:
    """Equal up to rounding, relative to the layer's standard deviation."""
    assert_close(out, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.std().item(), msg=lambda text: name + text)


def assert_signs_agree(name: str, out: Tensor, expected: Tensor) -> None:
    """Signs differ only for values close to zero, and only in at most one of a million (or a single one)."""
    differing = (out >= 0) != (expected >= 0)
    num_differing = differing.sum().item()
    assert num_differing <= max(1, expected.numel() * 1e-6), name
    assert expected[differing].abs().lt(TOLERANCE * expected.std()).all().item(), name


def assert_twins_agree(model: nn.Module, run) -> nn.Module:
    packed, layers = pack_and_report(model)
    assert [layer.name for layer in layers if layer.problem] == []
    assert not any(isinstance(module, BinaryConv2d) for module in packed.modules())
    calls = calls_of_twins(model, packed, run)
    assert calls
    for name, twin, inputs, expected in calls:
        assert_agrees(name, twin(*inputs), expected)
    return packed


@pytest.mark.parametrize('norm', [None, dict(type='BN'), dict(type='GN', num_groups=4)])
@pytest.mark.parametrize('kind', [BinaryLinear, partial(LayerwiseBinaryLinear, num_bases=3)])
def test_linears(kind, norm):
    torch.manual_seed(0)
    model = nn.Sequential(kind(20, 70, bias=True, input_norm=norm), nn.ReLU(), kind(70, 5, input_norm=dict(type='BN')))
    x = torch.randn(3, 7, 20)
    model.train()(x)
    model.eval()
    packed = assert_twins_agree(as_trained(model), lambda model: model(x))
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    assert packed(torch.zeros(0, 20)).shape == (0, 5)


def test_an_empty_batch():
    backbone = build_backbone(num_bases=1, binary_downsample=False)
    for model in (backbone, pack(backbone)):
        with torch.no_grad():
            assert [tuple(out.shape) for out in model(torch.zeros(0, 3, 64, 64))] == [
                (0, channels, 64 // stride, 64 // stride)
                for channels, stride in zip((16, 32, 64, 128), (4, 8, 16, 32), strict=True)
            ]


def test_a_norm_that_cannot_be_folded_stays_in_front():
    torch.manual_seed(0)
    conv = BinaryConv2d(8, 6, 3, padding=1, input_norm=dict(type='GN', num_groups=2))
    packed, x = pack(nn.Sequential(conv)), torch.randn(2, 8, 9, 7)
    assert_close(packed(x), conv(x))
    assert isinstance(packed[0][0], nn.GroupNorm) and isinstance(packed[0][1], PackedUnit)
    assert conv.input_norm is not None  # packing did not change the original model


@pytest.mark.parametrize('decomposition', ['lbd', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'soft_gate'])
@pytest.mark.parametrize('learned_scales', [False, True])
def test_every_decomposition(decomposition, learned_scales):
    backbone = build_backbone(decomposition=decomposition, learned_scales=learned_scales)
    assert_twins_agree(backbone, lambda model: model(pictures()))


@pytest.mark.parametrize(
    'options',
    [
        dict(num_bases=1),
        dict(depth=50, num_bases=2),
        dict(depth=50, num_bases=2, decomposition='gbd_v1'),
        dict(gate_per_branch=True),
        dict(in_place_sum=True, stem_bias=True),
        dict(in_place_sum=True, binary_downsample=False),
        dict(in_place_sum=True, num_bases=1),
        dict(binary_downsample=False),
        dict(binary_downsample=False, avg_down=True),
        dict(avg_down=True),
        dict(decomposition='gbd_v1', binary_downsample=False),
        dict(base_channels=8),  # 8 channels fill an eighth of a word
        dict(base_channels=24),
        dict(strides=(1, 2, 1, 1), dilations=(1, 1, (2, 3, 4), (6, 7, 8))),  # BPAC at output stride 8
        dict(strides=(1, 2, 1, 1), dilations=(1, 1, 'bpac', 'bpac'), avg_down=True),
        dict(strides=(1, 2, 1, 1), binary_downsample=False, avg_down=True),
        dict(binary_cfg=dict(padding_value=0)),
        dict(binary_cfg=dict(padding_value=-1, weight=dict(type='mmgroupnet.ChannelScaleWeight'))),
        dict(binary_cfg=dict(weight=dict(type='mmgroupnet.UnscaledWeight'))),
        dict(binary_cfg=dict(activation=dict(type='mmgroupnet.ClippedIdentitySign'))),
    ],
    ids=str,
)
def test_every_option_of_the_backbone(options):
    assert_twins_agree(build_backbone(**options), lambda model: model(pictures()))


@pytest.mark.parametrize('decomposition', ['lbd', 'soft_gate'])
def test_thresholds_of_shifted_signs(decomposition):
    backbone = build_backbone(
        decomposition=decomposition, binary_cfg=dict(activation=dict(type='mmgroupnet.ShiftedSign'))
    )
    for name, parameter in backbone.named_parameters():
        if name.endswith('shift'):
            nn.init.uniform_(parameter, -0.5, 0.5)
    assert_twins_agree(backbone, lambda model: model(pictures()))


def test_single_units_give_the_exact_signs():
    backbone = build_backbone()
    units = {name: unit for name, unit in backbone.named_modules() if isinstance(unit, BinaryUnit)}
    seen = {}
    for name, unit in units.items():
        unit.register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: (*inputs, out)}))
    packed = pack(copy.deepcopy(backbone).apply(lambda module: module._forward_hooks.clear()))
    with torch.no_grad():
        backbone(pictures())
    assert len(units) == len(seen) == 16
    for name, (x, shortcut, expected) in seen.items():
        block, _, index = name.rpartition('.units.')
        unit = packed.get_submodule(block).units[int(index)]
        out = PackedChain.run(x, Connection.SEPARATE, unit.geometry.num_bases, [unit], shortcut_map=shortcut)
        assert_agrees(name, out, expected)
        assert_signs_agree(name, out, expected)


def test_dyadic_blocks_are_exactly_equal():
    """All values are multiples of 1/64, whose sums are exact in any order, so rounding has no effect."""
    backbone = build_backbone(num_bases=4, binary_cfg=dict(weight=dict(type='mmgroupnet.UnscaledWeight')))
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
            module.running_var.fill_(256.0)
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.copy_(torch.randint(-4, 5, tensor.shape, generator=generator) / 4)
        elif hasattr(module, 'theta'):
            nn.init.zeros_(module.theta)  # a gate of exactly one half
    packed = pack(backbone)
    x = torch.randint(-8, 9, (2, 16, 15, 11), generator=generator) / 8
    with torch.no_grad():
        out, packed_out = x, x
        merge, packed_merge = None, None
        for stage, packed_stage in zip(backbone.stages, packed.stages, strict=True):
            for block, packed_block in zip(stage, packed_stage, strict=True):
                out = block(out, merge)
                packed_out = packed_block(packed_out, packed_merge)
                assert torch.equal(out, packed_out)
                # The number of significant bits grows with each block, so it is reduced before the next one.
                out = packed_out = out.mul(8).round().clamp(-64, 64) / 8
                merge, packed_merge = block.merge, packed_block.merge


@pytest.mark.parametrize('backbone', ['binary', 'stock'])
@pytest.mark.parametrize('neck', ['binary', 'stock'])
@pytest.mark.parametrize('head', ['binary', 'stock'])
def test_detectors(backbone, neck, head):
    detector = build_detector(BACKBONES[backbone], NECKS[neck], HEADS[head])
    x = pictures(96, 160)
    estimate_statistics(detector, lambda: detector(x, mode='tensor'))
    as_trained(detector)
    if (backbone, neck, head) == ('stock', 'stock', 'stock'):
        with pytest.raises(ValueError, match='no binary layers'):
            pack(detector)
        return
    assert_twins_agree(detector, lambda model: model(x, mode='tensor'))


@pytest.mark.parametrize(
    ('backbone', 'head'), [*(('binary', head) for head in SEGMENTATION_HEADS), ('stock', 'aspp'), ('stock', 'fcn')]
)
def test_segmentors(backbone, head):
    segmentor, x = build_segmentor(backbone, head), pictures(96, 160)
    estimate_statistics(segmentor, lambda: segmentor(x, mode='tensor'))
    as_trained(segmentor)
    assert_twins_agree(segmentor, lambda model: model(x, mode='tensor'))


@pytest.mark.parametrize('part', ['tower', 'blocks'])
def test_what_is_packed_in_part_runs(part):
    """Norms that cannot be folded stay as float layers between packed convs."""
    options = {
        'tower': dict(head=dict(HEADS['binary'], norm_cfg=dict(type='GN', num_groups=2))),
        'blocks': dict(backbone=dict(BACKBONES['binary'], norm_cfg=dict(type='BN', track_running_stats=False))),
    }[part]
    parts = dict(backbone=BACKBONES['binary'], neck=NECKS['binary'], head=HEADS['binary'])
    detector = build_detector(**{**parts, **options})
    x = pictures(96, 160)
    estimate_statistics(detector, lambda: detector(x, mode='tensor'))
    as_trained(detector)
    packed = assert_twins_agree(detector, lambda model: model(x, mode='tensor'))
    assert not any(isinstance(module, BinaryConv2d) for module in packed.modules())


def test_input_norms_that_cannot_be_folded_stay_in_blocks():
    input_norm = dict(type='GN', num_groups=2)
    backbone = build_backbone(num_bases=2, base_channels=8, binary_cfg=dict(input_norm=input_norm)).eval()
    packed = pack(backbone)
    assert not any(isinstance(module, BinaryConv2d) for module in packed.modules())
    with torch.no_grad():
        assert all(out.isfinite().all() for out in packed(pictures()))
        branches = torch.randn(2, 2 * 8, 9, 7)
        block, twin = backbone.stages[0][0], packed.stages[0][0]
        for unit, packed_unit in zip(block.units, twin.units, strict=True):
            assert_agrees('unit', packed_unit(branches, branches), unit(branches, branches))


class TestSharedLayers:
    def test_a_layer_with_two_names_is_packed_once(self):
        torch.manual_seed(0)
        conv = BinaryConv2d(6, 6, 3, padding=1)
        model = nn.ModuleList([conv, nn.ReLU(), conv])
        packed, layers = pack_and_report(model)
        assert isinstance(packed[0], PackedUnit) and packed[2] is packed[0]
        assert len(layers) == 1

    def test_a_conv_of_several_parents_stores_its_bits_once(self):
        """RTMDet's head shares convs in this way between levels that have separate norms."""
        torch.manual_seed(0)
        levels = nn.ModuleList(
            ConvModule(
                6,
                6,
                3,
                padding=1,
                conv_cfg=dict(type='mmgroupnet.BinaryConv2d'),
                norm_cfg=dict(type='BN'),
                act_cfg=None,
            )
            for _ in range(2)
        )
        levels[1].conv = levels[0].conv
        for level in levels:
            nn.init.uniform_(level.norm.weight)
        packed = pack(levels.eval())
        assert packed[0] is not packed[1] and packed[0].bits.data_ptr() == packed[1].bits.data_ptr()
        x = torch.randn(2, 6, 5, 7)
        with torch.no_grad():
            for level, twin in zip(levels, packed, strict=True):
                assert_agrees('conv', twin(x), level(x))


@pytest.mark.parametrize('groups', [1, 2, 5])
@pytest.mark.parametrize('conv', [BinaryConv2d, LayerwiseBinaryConv2d])
def test_groups_inside_branches(conv, groups):
    torch.manual_seed(0)
    layer = conv(30, 20, (3, 5), stride=(2, 1), padding='same', groups=groups, num_bases=3, bias=True)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 30 * layer.num_folded, 9, 8)
    with torch.no_grad():
        assert_agrees('conv', pack(layer)(x), layer(x))


class TestReport:
    def test_bytes_are_those_of_one_bit_a_weight(self):
        packed, layers = pack_and_report(build_backbone(num_bases=2, base_channels=8))
        first = layers[0]
        assert first.name == 'stages.0.0.units.0.conv' and first.problem is None
        assert first.bytes_before == 2 * 8 * 8 * 9 * 4
        assert first.bytes_after == 2 * 8 * 9  # 72 weights, 9 bytes, for each of 16 channels
        stored = sum(buffer.numel() for name, buffer in packed.named_buffers() if name.endswith('bits'))
        assert stored == sum(layer.bytes_after for layer in layers)

    def test_real_valued_layers_are_left_with_the_reason(self):
        model = nn.Sequential(
            build_backbone(num_bases=2, base_channels=8, real_valued=True, out_indices=(3,)), nn.Identity()
        )
        packed, layers = pack_and_report(model)
        problems = {layer.problem for layer in layers}
        assert problems == {'RealWeight has no signs: its weights are real-valued'}
        assert all(layer.bytes_after == layer.bytes_before for layer in layers)
        with torch.no_grad():
            # In another memory format float convs sum in another order.
            assert_close(packed(pictures())[0], model.eval()(pictures())[0], rtol=1e-4, atol=1e-4)

    def test_a_model_without_binary_layers_is_refused(self):
        with pytest.raises(ValueError, match='no binary layers'):
            pack(nn.Conv2d(3, 4, 1))


class TestPackedModel:
    def test_the_model_that_was_packed_is_left_as_it_is(self):
        backbone = build_backbone(num_bases=2, base_channels=8).train()
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        pack(backbone)
        assert backbone.training
        assert_close(backbone.state_dict(), before, rtol=0, atol=0)

    def test_its_state_fits_another_packed_model_of_the_architecture(self):
        first, second = (build_backbone(num_bases=2, base_channels=8, depth=depth) for depth in (18, 18))
        for parameter in second.parameters():
            nn.init.normal_(parameter)
        first, second = pack(first), pack(second)
        first(pictures())  # arranges the weights for the kernels; load_state_dict must cause this again
        second(pictures())
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            assert_close(second(pictures()), first(pictures()), rtol=0, atol=0)

    def test_a_model_in_double_precision_is_packed_in_single(self):
        backbone = build_backbone(num_bases=2, base_channels=8, decomposition='lbd')
        expected, packed = pack(backbone), pack(backbone.double())
        with torch.no_grad():
            assert_close(packed(pictures()), expected(pictures()), rtol=1e-5, atol=1e-5)
        assert backbone.stages[0][0].units[0].conv.weight.dtype == torch.float64

    def test_it_is_copied_and_pickled_after_it_ran(self):
        packed = pack(build_backbone(num_bases=2, base_channels=8))
        with torch.no_grad():
            expected = packed(pictures())
            for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
                assert_close(twin(pictures()), expected, rtol=0, atol=0)

    def test_it_stays_on_the_cpu_in_float32(self, monkeypatch):
        packed = pack(build_backbone(num_bases=2, base_channels=8))
        with pytest.raises(RuntimeError, match='converted to torch.float16'):
            packed.half()
        if torch.cuda.is_available():
            with pytest.raises(RuntimeError, match='cannot be moved to cuda'):
                packed.cuda()
        unit = next(module for module in packed.modules() if isinstance(module, PackedUnit))
        elsewhere = Mock(device=torch.device('cuda:0'), dtype=torch.float32)
        with pytest.raises(RuntimeError, match='a packed model cannot be moved to cuda:0'):
            unit._apply(lambda tensor: elsewhere)


@pytest.mark.parametrize('kind', [BinaryConv2d, LayerwiseBinaryConv2d])
def test_a_norm_and_a_learned_threshold_in_front_of_one_sign(kind):
    torch.manual_seed(0)
    conv = kind(
        6, 5, 3, padding=1, num_bases=2, input_norm=dict(type='BN'), activation=dict(type='mmgroupnet.ShiftedSign')
    )
    x = torch.randn(2, 6 * conv.num_folded, 9, 8).relu()
    estimate_statistics(conv, lambda: conv(x))
    nn.init.uniform_(conv.activation.shift, -1, 1)
    as_trained(conv).eval()
    packed, (layer,) = pack_and_report(conv)
    assert layer.problem is None and isinstance(packed, PackedUnit)
    with torch.no_grad():
        assert_agrees('conv', packed(x), conv(x))


@pytest.mark.parametrize('decomposition', ['gbd_v1', 'gbd_v3', 'soft_gate', 'lbd'])
def test_one_base_with_learned_scales(decomposition):
    backbone = build_backbone(num_bases=1, base_channels=8, decomposition=decomposition, learned_scales=True)
    for name, parameter in backbone.named_parameters():
        if name.endswith('merge.scales'):
            nn.init.constant_(parameter, 0.3)
    assert_twins_agree(backbone, lambda model: model(pictures()))


def test_the_eps_of_the_norms():
    backbone = build_backbone(num_bases=2, base_channels=8, norm_cfg=dict(type='BN', eps=0.5))
    assert_twins_agree(backbone, lambda model: model(pictures()))
