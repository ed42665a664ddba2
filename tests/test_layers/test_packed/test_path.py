"""Layers that run packed automatically: when they do so, their outputs, and changes of their weights."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from mmgroupnet import ops
from mmgroupnet.deploy import pack
from mmgroupnet.layers import BinaryConv2d, BinaryLinear, LayerwiseBinaryConv2d, MeanMerge, ScaledMerge
from mmgroupnet.layers.packed import find_twin, path, simulated
from mmgroupnet.models.dense_heads.binary_fcos_head import BinaryTower
from mmgroupnet.ops import kernels
from tests.test_deploy.test_packing import as_trained, build_backbone, pictures

pytestmark = pytest.mark.skipif(kernels.library() is None, reason='the kernels were not compiled')


def shake(module: nn.Module) -> nn.Module:
    """Gives all norms random weights and running statistics; sets eval mode."""
    for part in as_trained(module).modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module.eval()


def build_conv(**options) -> BinaryConv2d:
    torch.manual_seed(0)
    return shake(BinaryConv2d(5, 6, 3, num_bases=2, padding=1, bias=True, **options))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 10, 7, 9)


def build_tower() -> nn.Module:
    return BinaryTower(8, 12, 2, 3, 2, True, dict(type='BN'), {})


# Functions that build a layer, and functions that make its input.
LAYERS = dict(
    conv=(build_conv, lambda: torch.randn(2, 10, 7, 9)),
    conv_with_norm=(lambda: build_conv(input_norm=dict(type='BN')), lambda: torch.randn(2, 10, 7, 9)),
    conv_with_foreign_norm=(
        lambda: build_conv(input_norm=dict(type='GN', num_groups=1)),
        lambda: torch.randn(2, 10, 7, 9),
    ),
    layerwise=(
        lambda: LayerwiseBinaryConv2d(5, 6, 3, num_bases=3, learned_scales=True),
        lambda: torch.randn(2, 5, 7, 9),
    ),
    linear=(lambda: BinaryLinear(20, 7, input_norm=dict(type='BN')), lambda: torch.randn(3, 4, 20)),
    mean=(lambda: MeanMerge(3), lambda: torch.randn(2, 12, 5, 4)),
    scaled=(lambda: ScaledMerge(3), lambda: torch.randn(2, 12, 5, 4)),
    tower=(build_tower, lambda: (torch.randn(1, 8, 5, 7), 1)),
    **{
        f'backbone_{decomposition}': (
            lambda decomposition=decomposition: build_backbone(decomposition=decomposition, num_bases=2),
            pictures,
        )
        for decomposition in ('lbd', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'soft_gate')
    },
    backbone_in_place=(lambda: build_backbone(in_place_sum=True, avg_down=True, binary_downsample=False), pictures),
    cifar=(
        lambda: build_backbone(stem='cifar', num_bases=2, stage_blocks=(1, 1, 1)),
        lambda: pictures(32, 32),
    ),
)


class TestWhatItGives:
    @pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize('name', LAYERS)
    def test_the_numbers_of_the_packed_layer(self, name, context):
        torch.manual_seed(0)
        build, make_input = LAYERS[name]
        layer, given = shake(build()), make_input()
        packed = pack(nn.ModuleList([layer, BinaryConv2d(1, 1, 1)]))[0]
        with context():
            out, again, expected = layer(given), layer(given), packed(given)
            with simulated():
                reference = layer(given)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        torch.testing.assert_close(again, expected, rtol=0, atol=0)
        # In a whole network, rounding may flip a sign in a later layer. tests/test_deploy/test_packing.py compares
        # networks layer by layer.
        if not name.startswith(('backbone', 'cifar')):
            torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-4)

    def test_it_runs_the_kernels(self, monkeypatch, x):
        conv = build_conv()
        run_block = Mock(wraps=ops.run_block)
        monkeypatch.setattr(ops, 'run_block', run_block)
        convolve = Mock(wraps=torch.nn.functional.conv2d)
        monkeypatch.setattr(torch.nn.functional, 'conv2d', convolve)
        with torch.no_grad():
            conv(x)
        assert run_block.call_count == 1 and convolve.call_count == 0
        with torch.no_grad(), simulated():
            conv(x)
        assert run_block.call_count == 1 and convolve.call_count == 2

    def test_a_whole_network_has_no_simulated_layer(self, monkeypatch):
        backbone = build_backbone(num_bases=2)
        convolve = Mock(wraps=nn.functional.conv2d)
        monkeypatch.setattr(nn.functional, 'conv2d', convolve)
        with torch.no_grad():
            backbone(pictures())
        assert convolve.call_count == 1  # the conv of the stem

    def test_half_precision_that_autocast_makes(self, x):
        conv = build_conv()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            assert conv(x.bfloat16()).dtype == torch.float32


class TestWhereItDoes:
    def assert_simulated(self, layer: nn.Module, x: Tensor) -> None:
        assert find_twin(layer, x) is None
        layer(x)  # it runs, and tests see what that changed

    def test_not_where_gradients_are_recorded(self, x):
        self.assert_simulated(build_conv(), x)
        self.assert_simulated(build_conv().requires_grad_(False), x)

    def test_not_in_training(self, x):
        with torch.no_grad():
            self.assert_simulated(build_conv().train(), x)

    def test_not_where_a_part_trains(self, x):
        conv = build_conv(input_norm=dict(type='BN'))
        conv.input_norm.train()
        before = conv.input_norm.running_mean.clone()
        with torch.no_grad():
            self.assert_simulated(conv, x)
        assert not torch.equal(conv.input_norm.running_mean, before)

    def test_not_in_double_precision(self, x):
        conv = build_conv().double()
        with torch.no_grad():
            self.assert_simulated(conv, x.double())
            assert conv(x.double()).dtype == torch.float64

    def test_not_elsewhere(self, x):
        with torch.no_grad():
            self.assert_simulated(build_conv().to('meta'), x.to('meta'))

    @pytest.mark.parametrize('register', ['register_forward_hook', 'register_forward_pre_hook'])
    def test_not_where_a_part_has_hooks(self, x, register):
        conv, hook = build_conv(), Mock(return_value=None)
        handle = getattr(conv.activation, register)(hook)
        with torch.no_grad():
            self.assert_simulated(conv, x)
            assert hook.call_count == 1
            handle.remove()
            assert find_twin(conv, x) is not None

    def test_not_with_hooks_of_all_modules(self, x):
        conv, hook = build_conv(), Mock(return_value=None)
        handle = register_module_forward_hook(hook)
        try:
            with torch.no_grad():
                self.assert_simulated(conv, x)
        finally:
            handle.remove()
        assert hook.call_count == 3  # for the two quantizers and the conv

    def test_its_own_hooks_are_called(self, x):
        conv, hook = build_conv(), Mock(return_value=None)
        conv.register_forward_hook(hook)
        with torch.no_grad():
            out = conv(x)
            assert find_twin(conv, x) is not None
        assert hook.call_args.args[2] is out

    def test_not_without_kernels(self, x, monkeypatch):
        monkeypatch.setattr(kernels, 'library', lambda: None)
        with torch.no_grad():
            self.assert_simulated(build_conv(), x)

    def test_not_where_the_layer_is_not_packable(self, x):
        conv = build_conv(weight=dict(type='mmgroupnet.RealWeight'))
        with torch.no_grad():
            self.assert_simulated(conv, x)

    def test_a_forward_of_the_users_own_is_called(self, x):
        class Doubled(BinaryConv2d):
            def effective_weight(self) -> Tensor:
                return 2 * super().effective_weight()

        torch.manual_seed(0)
        plain = BinaryConv2d(10, 4, 3, weight=dict(type='mmgroupnet.UnscaledWeight')).eval()
        doubled = Doubled(10, 4, 3, weight=dict(type='mmgroupnet.UnscaledWeight')).eval()
        doubled.load_state_dict(plain.state_dict())
        with torch.no_grad():
            assert torch.equal(doubled(x), 2 * plain(x))

    def test_exported_programs_have_the_operations_of_torch(self, x):
        conv = build_conv()
        with torch.no_grad():
            conv(x)
            program = torch.export.export(conv, (x,))
        targets = [str(node.target) for node in program.graph.nodes]
        assert any('conv2d' in target for target in targets)
        assert not any('mmgroupnet' in target for target in targets)


def by_optimizer(conv: BinaryConv2d) -> None:
    optimizer = torch.optim.SGD(conv.parameters(), lr=1.0, foreach=True)
    for parameter in conv.parameters():
        parameter.grad = -3 * parameter.detach().sign()
    optimizer.step()


def by_fused_optimizer(conv: BinaryConv2d) -> None:
    optimizer = torch.optim.Adam(conv.parameters(), lr=1.0, fused=True)
    for parameter in conv.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()


def by_loading(conv: BinaryConv2d) -> None:
    conv.load_state_dict({key: -value for key, value in conv.state_dict().items()})


def by_data(conv: BinaryConv2d) -> None:
    for parameter in conv.parameters():
        parameter.data.copy_(-parameter.data)  # does not increase the version counter


def by_other_data(conv: BinaryConv2d) -> None:
    conv.weight.data = -conv.weight.data


def by_moving_average(conv: BinaryConv2d) -> None:
    hook, runner = EMAHook(), Mock()
    runner.model = conv
    hook.before_run(runner)
    for average in hook.ema_model.parameters():
        average.data.neg_()
    hook._swap_ema_parameters()


def by_another_parameter(conv: BinaryConv2d) -> None:
    conv.weight = nn.Parameter(-conv.weight.detach())


def by_another_module(conv: BinaryConv2d) -> None:
    conv.activation = MODELS.build(dict(type='mmgroupnet.ShiftedSign', num_channels=10)).eval()
    nn.init.constant_(conv.activation.shift, 0.3)


def by_one_number_and_eval(conv: BinaryConv2d) -> None:
    conv.weight.data.view(-1)[7] *= -1
    conv.eval()


def by_statistics(conv: BinaryConv2d) -> None:
    conv.train()(torch.randn(2, 10, 7, 9) + 1)
    conv.eval()


class TestChanges:
    @pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize(
        'change',
        [
            by_optimizer,
            by_fused_optimizer,
            by_loading,
            by_data,
            by_other_data,
            by_moving_average,
            by_another_parameter,
            by_another_module,
            by_one_number_and_eval,
            by_statistics,
        ],
    )
    def test_are_noticed(self, x, change: Callable[[BinaryConv2d], None], context):
        conv = build_conv(input_norm=dict(type='BN'))
        with context():
            before = conv(x)
        change(conv)
        with context():
            out = conv(x)
            with simulated():
                expected = conv(x)
        assert not torch.allclose(before, out)
        torch.testing.assert_close(out, expected)

    def test_that_swap_to_and_fro(self, x):
        conv = build_conv()
        hook, runner = EMAHook(momentum=0.5), Mock()
        runner.model = conv
        hook.before_run(runner)
        with torch.no_grad():
            raw = conv(x)
            conv.weight.mul_(-1)
            hook._swap_ema_parameters()
            averaged = conv(x)
            hook._swap_ema_parameters()
            conv.weight.mul_(-1)
            again = conv(x)
        assert torch.equal(raw, averaged) and torch.equal(raw, again)

    def test_without_one_nothing_is_packed_again(self, x, monkeypatch):
        conv = build_conv()
        pack_weight = Mock(wraps=ops.pack_weight)
        monkeypatch.setattr(path, 'pack_weight', pack_weight)
        with torch.no_grad():
            for _ in range(3):
                conv(x)
        assert pack_weight.call_count == 1

    def test_not_a_number_is_no_change(self, x, monkeypatch):
        conv = build_conv()
        nn.init.constant_(conv.bias, float('nan'))
        pack_weight = Mock(wraps=ops.pack_weight)
        monkeypatch.setattr(path, 'pack_weight', pack_weight)
        with torch.no_grad():
            conv(x), conv(x)
        assert pack_weight.call_count == 1

    def test_weights_in_channels_last(self, x):
        conv = build_conv().to(memory_format=torch.channels_last)
        with torch.no_grad():
            conv(x)
            conv.weight.data.neg_()
            with simulated():
                expected = conv(x)
            torch.testing.assert_close(conv(x), expected)


class TestNothingOfItIsPartOfTheLayer:
    def test_state_copies_and_pickles(self, x):
        conv = build_conv()
        names, size = list(conv.state_dict()), len(pickle.dumps(conv))
        with torch.no_grad():
            out = conv(x)
        assert list(conv.state_dict()) == names and len(pickle.dumps(conv)) == size
        assert [name for name, _ in conv.named_modules()] == ['', 'activation', 'weight_quantizer']
        other = copy.deepcopy(conv)
        nn.init.constant_(other.bias, 0)
        with torch.no_grad():
            assert torch.equal(other(x) + conv.bias.view(-1, 1, 1), out)

    def test_it_dies_with_the_layer(self, x):
        conv = build_conv()
        with torch.no_grad():
            conv(x)
            twin = weakref.ref(find_twin(conv, x))
        assert twin() is not None
        del conv
        gc.collect()
        assert twin() is None

    def test_training_lets_go_of_it(self, x):
        conv = build_conv()
        with torch.no_grad():
            twin = weakref.ref(find_twin(conv, x))
        nn.Sequential(conv).train()
        gc.collect()
        assert twin() is None


def test_observers_see_the_signs(x):
    conv = build_conv(input_norm=dict(type='BN'))
    seen = []
    conv.sign_observer = seen.append
    with torch.no_grad():
        observed = conv(x)
        with simulated():
            conv(x)
        conv.sign_observer = None
        assert torch.equal(conv(x), observed)
    assert len(seen) == 2 and torch.equal(*seen)
