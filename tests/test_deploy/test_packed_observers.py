"""Observers of packed layers get the signs of the simulated layers, and do not change the outputs."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmgroupnet import ops
from mmgroupnet.deploy import pack
from mmgroupnet.layers import BinaryLinear, LayerwiseBinaryConv2d
from mmgroupnet.layers.packed import PackedLinear, PackedTower, PackedUnit
from mmgroupnet.quantizers import SignActivation
from tests.liveness import estimate_statistics
from tests.test_deploy.test_packing import as_trained, build_backbone, calls_of_twins, pictures
from tests.test_models.test_combinations import BACKBONES, HEADS, NECKS, build

pytestmark = pytest.mark.usefixtures('simulated_layers')


def observe(packed: nn.Module) -> list[Tensor]:
    """Observes all packed units of a model; their signs are appended to the returned list."""
    seen: list[Tensor] = []
    for module in packed.modules():
        if isinstance(module, PackedUnit):
            module.sign_observer = seen.append
    return seen


def signs_of_simulated(model: nn.Module, *inputs: object) -> list[Tensor]:
    """Boolean maps of the positions with sign +1 in a model before packing, in the order of the calls."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, signs: seen.append(signs >= 0))
        for module in model.modules()
        if isinstance(module, SignActivation)
    ]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return seen


def assert_reports_agree(found: list[Tensor], expected: list[Tensor]) -> None:
    """The signs of the first layer are equal; later ones may differ for values close to zero, because of rounding."""
    assert len(found) == len(expected) > 0
    for positive, wanted in zip(found, expected, strict=True):
        assert positive.dtype == torch.bool and positive.shape == wanted.shape
        assert (positive != wanted).sum() <= 1e-4 * wanted.numel()
        assert 0 < positive.float().mean() < 1
    assert torch.equal(found[0], expected[0])


def assert_layers_agree(model: nn.Module, run: Callable[[nn.Module], object], part: str = '') -> list[nn.Module]:
    """Compares the observed signs of all packed layers of a part with those of the simulated layers. Each packed layer
    gets the inputs of its simulated twin. Returns the packed layers."""
    packed = pack(model)
    names = {module: name for name, module in packed.named_modules()}
    observed = []
    for name, twin, inputs, _ in calls_of_twins(model, packed, run):
        if name.startswith(part) and any(isinstance(module, PackedUnit) for module in twin.modules()):
            unobserved = twin(*inputs)
            found = observe(twin)
            assert torch.equal(twin(*inputs), unobserved)
            # A module among the inputs is the merge of the previous block.
            given = (model.get_submodule(names[x]) if isinstance(x, nn.Module) else x for x in inputs)
            assert_reports_agree(found, signs_of_simulated(model.get_submodule(name), *given))
            observed.append(twin)
    assert observed
    return observed


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(depth=50),
        dict(num_bases=1),
        dict(decomposition='lbd'),
        dict(decomposition='lbd', avg_down=True),
        dict(decomposition='gbd_v1'),
        dict(decomposition='gbd_v1', avg_down=True),
        dict(decomposition='gbd_v2', learned_scales=True),
        dict(decomposition='gbd_v3'),
        dict(binary_downsample=False, avg_down=True),
        dict(decomposition='gbd_v1', binary_downsample=False),
        dict(in_place_sum=True),
        dict(binary_cfg=dict(activation=dict(type='mmgroupnet.ShiftedSign'))),
    ],
    ids=str,
)
def test_blocks(options):
    model = build_backbone(**{**dict(num_bases=2, base_channels=8), **options})
    for name, parameter in model.named_parameters():
        if name.endswith('shift'):
            nn.init.uniform_(parameter, -0.5, 0.5)
    assert_layers_agree(model, lambda model: model(pictures()))


@pytest.mark.parametrize('part', ['neck', 'bbox_head'])
def test_necks_and_towers(part):
    """The levels of a tower share their convs; in the packed tower each level is a separate unit."""
    model = build(BACKBONES['binary'], NECKS['binary'], HEADS['binary'])
    estimate_statistics(model, lambda: model(pictures(96, 160)))
    twins = assert_layers_agree(as_trained(model), lambda model: model(pictures(96, 160)), part)
    assert part == 'neck' or sum(isinstance(twin, PackedTower) for twin in twins) == 2 * 4


@pytest.mark.parametrize('input_norm', [None, dict(type='BN'), dict(type='GN', num_groups=4)], ids=str)
def test_linears(input_norm):
    torch.manual_seed(0)
    model, x = nn.Sequential(BinaryLinear(20, 7, input_norm=input_norm)), torch.randn(3, 5, 20)
    model.train()(x)
    (twin,) = assert_layers_agree(as_trained(model).eval(), lambda model: model(x))
    assert isinstance(twin, PackedLinear)


def test_a_layerwise_conv():
    torch.manual_seed(0)
    model = nn.Sequential(LayerwiseBinaryConv2d(6, 4, 3, num_bases=3, input_norm=dict(type='BN')))
    x = torch.randn(2, 6, 9, 8)
    model.train()(x)
    assert_layers_agree(as_trained(model).eval(), lambda model: model(x))


class TestObserver:
    @pytest.fixture
    def packed(self) -> nn.Module:
        return pack(build_backbone(num_bases=2, base_channels=8))

    def test_one_unit_of_a_block_is_enough(self, packed):
        block = packed.stages[1][0]
        seen = []
        block.units[1].sign_observer = seen.append
        x = torch.randn(1, 16, 8, 8)
        block(x, packed.stages[0][1].merge)
        assert [positive.shape for positive in seen] == [(1, 32, 4, 4)]

    def test_unobserved_blocks_are_one_call(self, packed, monkeypatch):
        calls = []
        run_block = ops.run_block
        monkeypatch.setattr(ops, 'run_block', lambda *args: calls.append(args) or run_block(*args))
        x = torch.randn(1, 16, 8, 8)
        block, merge = packed.stages[1][0], packed.stages[0][1].merge
        block(x, merge)
        assert len(calls) == 1
        block.shortcut.sign_observer = lambda positive: None
        block(x, merge)
        assert len(calls) == 1 + 1 + 3  # the whole block twice; for the observer, the shortcut and the two units

    def test_it_is_not_taken_over_from_the_conv(self):
        conv = LayerwiseBinaryConv2d(6, 4, 3, num_bases=3)
        conv.sign_observer = print
        assert pack(conv).sign_observer is None

    def test_copies_and_files_are_not_observed(self, packed):
        seen = observe(packed)
        for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            twin(pictures())
        assert seen == []
        packed(pictures())
        assert seen

    def test_an_error_names_the_unit_and_the_observer(self, packed):
        def watch(positive: Tensor) -> None:
            raise KeyError('layer3')

        unit = packed.stages[0][0].units[1]
        unit.sign_observer = watch
        with pytest.raises(RuntimeError, match="watch.* of PackedUnit.* raised KeyError: 'layer3'") as caught:
            packed(pictures())
        assert unit.extra_repr() in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)
