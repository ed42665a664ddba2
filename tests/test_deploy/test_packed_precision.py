"""Packed models under autocast and in grad mode."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from mmgroupnet.deploy import pack
from mmgroupnet.layers import BinaryConv2d, BinaryLinear
from mmgroupnet.layers.packed import PackedTower
from tests.liveness import estimate_statistics
from tests.test_deploy.test_packing import as_trained, build_backbone, calls_of_twins, pictures
from tests.test_models.test_combinations import BACKBONES, HEADS, NECKS, build

pytestmark = pytest.mark.usefixtures('simulated_layers')


def small_backbone(**options) -> nn.Module:
    return build_backbone(num_bases=2, base_channels=8, **options)


def detector() -> nn.Module:
    model = build(BACKBONES['binary'], NECKS['binary'], HEADS['binary'])
    estimate_statistics(model, lambda: model(pictures(96, 160)))
    return as_trained(model)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
class TestAutocast:
    @pytest.mark.parametrize(
        'build_model',
        [
            small_backbone,
            lambda: small_backbone(decomposition='lbd', learned_scales=True),
            lambda: small_backbone(decomposition='gbd_v1', binary_downsample=False, avg_down=True),
            lambda: small_backbone(in_place_sum=True, binary_downsample=False),
            detector,
        ],
        ids=['soft_gate', 'lbd', 'float_shortcut', 'in_place_sum', 'detector'],
    )
    def test_every_layer_computes_in_float32(self, build_model, dtype):
        """A half precision map gives exactly the same output as its copy in float32."""
        model = build_model()
        packed = pack(model)
        for name, twin, inputs, _ in calls_of_twins(model, packed, lambda model: model(pictures(96, 160))):
            halves = tree_map_only(Tensor, lambda x: x.to(dtype), inputs)
            floats = tree_map_only(Tensor, Tensor.float, halves)
            with torch.no_grad():
                expected = twin(*floats)
                with torch.autocast('cpu', dtype):
                    assert torch.equal(twin(*floats), expected), name
                    if not isinstance(twin, PackedTower):  # a tower begins with a float norm
                        assert torch.equal(twin(*halves), expected), name
                    assert twin(*halves).dtype == expected.dtype == torch.float32, name

    def test_linear(self, dtype):
        packed, x = pack(BinaryLinear(20, 7, bias=True)), torch.randn(3, 20).to(dtype)
        with torch.autocast('cpu', dtype):
            assert torch.equal(packed(x), packed(x.float()))

    def test_a_model_gives_float32_maps(self, dtype):
        packed = pack(detector())
        x = pictures(96, 160)
        with torch.no_grad(), torch.autocast('cpu', dtype):
            features = packed.neck(packed.backbone(x))
            assert {feature.dtype for feature in features} == {torch.float32}
            # The last convs of the head are float convs, which autocast runs in half precision.
            assert all(out.isfinite().all() for out in tree_leaves(packed(x)))


class TestGradMode:
    @pytest.fixture
    def packed(self) -> nn.Module:
        torch.manual_seed(0)
        return pack(nn.Sequential(nn.Conv2d(3, 8, 3), BinaryConv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)))

    @pytest.mark.parametrize('build_model', [small_backbone, detector], ids=['backbone', 'detector'])
    def test_an_evaluated_model_runs(self, build_model):
        packed, x = pack(build_model()), pictures(96, 160)
        assert any(parameter.requires_grad for parameter in packed.parameters())
        with torch.no_grad():
            expected = packed(x)
        for out, wanted in zip(tree_leaves(packed(x)), tree_leaves(expected), strict=True):
            assert torch.equal(out, wanted)

    def test_maps_require_no_gradient(self):
        packed = pack(small_backbone())
        assert not any(out.requires_grad for out in packed(pictures().requires_grad_()))
        merge = packed.stages[0][0].merge
        assert not merge(torch.randn(1, 16, 5, 5, requires_grad=True)).requires_grad

    def test_float_layers_behind_a_packed_one_learn(self, packed):
        packed(torch.randn(1, 3, 7, 7)).sum().backward()
        assert packed[2].weight.grad is not None
        assert packed[0].weight.grad is None

    def test_float_layers_in_front_of_a_packed_one_cannot_learn(self, packed):
        packed.train()
        x = torch.randn(1, 3, 7, 7)
        with pytest.raises(RuntimeError, match=r'PackedUnit has no gradient, .* freeze them, or call eval\(\)'):
            packed(x)
        with torch.no_grad():
            expected = packed(x)
        packed[0].requires_grad_(False)
        assert torch.equal(packed(x), expected)

    def test_packed_layers_are_in_evaluation_mode(self):
        packed = pack(small_backbone().train())
        assert not any(module.training for module in packed.modules())
