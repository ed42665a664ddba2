"""Whether layers run lean or plain. This only depends on facts that are the same in all processes; observers do not
change it."""

import copy

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d, LayerwiseBinaryConv2d, can_run_chain
from mmgroupnet.layers.lean import can_run_conv
from mmgroupnet.layers.lean.path import forget_warnings
from mmgroupnet.models.backbones.groupnet_block import BinaryUnit
from mmgroupnet.models.dense_heads.binary_fcos_head import BinaryTower
from tests.lean_comparison import (
    DECOMPOSITIONS,
    block_of,
    outputs_and_gradients,
    relative,
    saved_bytes,
    set_lean,
    small_network,
)

IMAGES = (2, 3, 32, 32)


def runs_lean(network: nn.Module) -> set[bool]:
    """Whether the blocks of a network run lean."""
    found = set()
    for blocks in network.stages:
        for block in blocks:
            channels = block.units[0].conv.in_channels * block.units[0].conv.num_folded
            found.add(can_run_chain(block.chain(), torch.randn(2, channels, 4, 4), block))
    return found


class TestWhatRunsLean:
    @pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
    def test_norms_of_configs(self, norm):
        assert runs_lean(small_network(norm_cfg=dict(type=norm))) == {True}

    @pytest.mark.parametrize(
        'options',
        [
            dict(norm_cfg=dict(type='GN', num_groups=2)),
            dict(real_valued=True),
            dict(binary_cfg=dict(memory_efficient=False)),
        ],
        ids=['group norm', 'real values', 'memory_efficient=False'],
    )
    def test_other_parts_train_plain(self, options):
        network = small_network(**options)
        assert runs_lean(network) == {False}
        network(torch.randn(IMAGES))[-1].sum().backward()
        assert network.stem[0].weight.grad.any()

    def test_evaluation_runs_plain(self):
        network = small_network()
        assert runs_lean(network) == {True}
        with torch.no_grad():
            assert runs_lean(network) == {False}
        assert runs_lean(network.requires_grad_(False)) == {False}

    def test_an_input_alone_may_want_a_gradient(self):
        conv = BinaryConv2d(3, 4, 3).requires_grad_(False)
        x = torch.randn(1, 3, 5, 5)
        assert not can_run_conv(conv, x)
        assert can_run_conv(conv, x.requires_grad_())

    @pytest.mark.parametrize('cls', [BinaryConv2d, LayerwiseBinaryConv2d])
    def test_gradients_of_functions(self, cls):
        conv = cls(3, 4, 3, num_bases=2 if cls is LayerwiseBinaryConv2d else 1)
        x = torch.randn(1, 3, 5, 5)
        found = torch.func.grad(lambda weight: torch.func.functional_call(conv, dict(weight=weight), x).sum())(
            conv.weight.detach()
        )
        conv(x).sum().backward()
        assert_close(found, conv.weight.grad)

    def test_double_backward_is_refused(self):
        conv, x = BinaryConv2d(3, 4, 3), torch.randn(1, 3, 5, 5, requires_grad=True)
        for part in (conv, small_network()):
            out = part(x if part is conv else torch.randn(IMAGES, requires_grad=True))
            with pytest.raises(RuntimeError, match='create_graph=True: lean training has only first derivatives'):
                torch.autograd.grad(sum(each.sum() for each in out), list(part.parameters()), create_graph=True)

    def test_double_backward_of_plain_training(self):
        conv = BinaryConv2d(1, 1, 1, memory_efficient=False)
        x = torch.tensor([[[[-0.5, 0.25]]]], requires_grad=True)
        (gradient,) = torch.autograd.grad(conv(x).sum(), x, create_graph=True)
        # The derivative of max(0, 2 - 2|x|) is -2 sign(x).
        (second,) = torch.autograd.grad(gradient.sum(), x)
        assert_close(second, torch.tensor([[[[2.0, -2.0]]]]) * conv.effective_weight().detach())


class TestObservers:
    def test_see_the_signs_of_plain_training(self):
        seen = {}
        for is_lean in (True, False):
            network = small_network(binary_cfg=dict(memory_efficient=is_lean)).double()
            shown = seen[is_lean] = {}
            for name, module in network.named_modules():
                if isinstance(module, BinaryConv2d):
                    module.sign_observer = shown.setdefault(name, []).append
            network(torch.randn(IMAGES, generator=torch.Generator().manual_seed(0)).double())
        assert len(seen[True]) > 16 and all(len(calls) == 1 for calls in seen[True].values())
        for name, (signs,) in seen[True].items():
            assert signs.dtype == torch.bool
            # In plain training, a conv that branches share gets them as its batch, so only the counts are compared.
            assert int(signs.sum()) == int(seen[False][name][0].sum()), name
            assert signs.numel() == seen[False][name][0].numel()

    @pytest.mark.parametrize('with_cp', [False, True])
    def test_change_neither_results_nor_memory(self, with_cp):
        x = torch.randn(2, 3, 64, 64)
        networks = [small_network(with_cp=with_cp) for _ in range(2)]
        for module in networks[0].modules():
            if isinstance(module, BinaryConv2d):
                module.sign_observer = lambda positive: positive.float().mean().item()
        kept = [saved_bytes(lambda network=network: network(x)) for network in networks]
        assert kept[0] <= 1.05 * kept[1]
        watched, unwatched = (outputs_and_gradients(network, [x], lambda m, x: m(x)) for network in networks)
        assert all(torch.equal(watched[name], value) for name, value in unwatched.items() if value is not None)

    @pytest.mark.parametrize('is_lean', [True, False])
    def test_one_that_raises_names_the_conv(self, is_lean):
        conv = BinaryConv2d(3, 4, 3, memory_efficient=is_lean)

        def observer(positive: Tensor) -> None:
            raise KeyError('nothing')

        conv.sign_observer = observer
        message = r"sign_observer=.*observer.* of BinaryConv2d\(3, 4, .* raised KeyError: 'nothing'"
        with pytest.raises(RuntimeError, match=message):
            conv(torch.randn(1, 3, 5, 5))


class TestHooks:
    """Hooks of users on submodules that lean training bypasses."""

    @pytest.mark.parametrize(
        'part',
        ['connection', 'units.1', 'units.0.norm', 'units.0.relu', 'units.0.conv.activation', 'shortcut', 'shortcut.1'],
    )
    @pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward', 'full_backward_pre'])
    def test_of_every_part_of_a_block_fire(self, part, kind):
        network = small_network()
        calls: list[int] = []
        register = getattr(network.stages[1][0].get_submodule(part), f'register_{kind}_hook')
        handle = register(lambda *call: calls.append(1))
        network(torch.randn(IMAGES))[-1].sum().backward()
        assert calls == [1]
        handle.remove()
        assert runs_lean(network) == {True}

    def test_of_the_merge_in_front_fire(self):
        network = small_network()
        calls: list[int] = []
        network.stages[0][0].merge.register_forward_hook(lambda *call: calls.append(1))
        network(torch.randn(IMAGES))
        assert calls == [1]

    @pytest.mark.parametrize(
        ('cls', 'part'),
        [
            (BinaryConv2d, 'activation'),
            (BinaryConv2d, 'weight_quantizer'),
            (LayerwiseBinaryConv2d, 'activation'),
            (LayerwiseBinaryConv2d, 'weight_quantizer'),
            (LayerwiseBinaryConv2d, 'merge'),
        ],
    )
    @pytest.mark.parametrize('is_lean', [True, False])
    def test_of_a_conv_fire(self, cls, part, is_lean):
        conv = cls(3, 4, 3, num_bases=2, memory_efficient=is_lean)
        calls: list[int] = []
        conv.get_submodule(part).register_forward_hook(lambda *call: calls.append(1))
        conv(torch.randn(1, 3 * conv.num_folded, 5, 5))
        assert calls == [1]

    @pytest.mark.parametrize('register', [register_module_forward_hook, register_module_full_backward_hook])
    def test_of_all_modules_fire(self, register):
        network = small_network()
        seen: list[nn.Module] = []
        handle = register(lambda module, *call: seen.append(module))
        try:
            network(torch.randn(IMAGES))[-1].sum().backward()
        finally:
            handle.remove()
        for kind in (BinaryConv2d, nn.BatchNorm2d):
            assert sum(isinstance(module, kind) for module in seen) == sum(
                isinstance(module, kind) for module in network.modules()
            )

    def test_are_said_once(self, monkeypatch):
        said: list[str] = []
        monkeypatch.setattr('mmgroupnet.layers.lean.path.print_log', lambda message, **kwargs: said.append(message))
        network = small_network()
        block_of(network, 0).units[0].norm.register_forward_hook(lambda *call: None)
        forget_warnings()
        for _ in range(2):
            network(torch.randn(IMAGES))
        assert said == [
            'units.0.norm of BasicBlock has a hook: modules of this kind run plain while it is there, with the memory '
            'of plain autograd'
        ]

    def test_are_refused_where_norms_are_synchronised(self, monkeypatch):
        monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
        monkeypatch.setattr(distributed, 'get_world_size', lambda group: 2)
        block = block_of(small_network(norm_cfg=dict(type='SyncBN')), 0)
        block.units[0].conv.register_forward_hook(lambda *call: None)
        with pytest.raises(RuntimeError, match=r'units.0.conv of BasicBlock has a hook, .* remove the hook'):
            can_run_chain(block.chain(), torch.randn(2, 16, 4, 4), block)


@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
@pytest.mark.parametrize('with_cp', [False, True])
def test_evaluation_mode_between_forward_and_backward_changes_nothing(decomposition, with_cp):
    x = torch.randn(IMAGES).double()
    network = small_network(decomposition=decomposition, with_cp=with_cp).double()
    plain = set_lean(copy.deepcopy(network), False)
    out = network(x)[-1].square().sum()
    network.eval()
    out.backward()
    plain(x)[-1].square().sum().backward()
    for (name, value), wanted in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert (value.grad is None) == (wanted.grad is None)
        if wanted.grad is not None:
            assert relative(value.grad, wanted.grad) <= 1e-9, name


def test_other_changes_between_forward_and_backward_change_nothing():
    x = torch.randn(IMAGES).double()
    network = small_network().double()
    other = copy.deepcopy(network)
    out, expected = network(x)[-1], other(x)[-1]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 0.5, 0.9
        if isinstance(module, BinaryConv2d):
            module.memory_efficient, module.stride, module.padding_value = False, (3, 3), 0
    out.sum().backward()
    expected.sum().backward()
    for value, wanted in zip(network.parameters(), other.parameters(), strict=True):
        assert_close(value.grad, wanted.grad, rtol=0, atol=0)


class OwnUnit(BinaryUnit):
    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, shortcut)


class OwnConv(BinaryConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OwnWeight(BinaryConv2d):
    def effective_weight(self) -> Tensor:
        return 3 * super().effective_weight()


class TestWhatIsRewritten:
    """Lean training re-implements the forward passes of our modules. If a module has another forward, that one runs."""

    def check(self, network: nn.Module) -> None:
        network.double()
        x = torch.randn(IMAGES).double()
        with_gradients = network(x)[-1]
        with torch.no_grad():
            network.apply(lambda module: setattr(module, 'momentum', 0.0) if hasattr(module, 'momentum') else None)
            without = network(x)[-1]
        assert_close(with_gradients.detach(), without)

    def test_an_activation_in_the_place_of_the_relu(self):
        network = small_network()
        unit = block_of(network, 0).units[0]
        unit.relu = nn.PReLU(init=0.5)
        self.check(network)
        network(torch.randn(IMAGES).double())[-1].square().sum().backward()
        assert unit.relu.weight.grad is not None

    @pytest.mark.parametrize(('part', 'cls'), [('units.0', OwnUnit), ('units.1.conv', OwnConv)])
    def test_a_class(self, part, cls):
        network = small_network()
        module = block_of(network, 0).get_submodule(part)
        before = block_of(network, 0)(torch.randn(2, 16, 8, 8), network.stages[0][0].merge)
        module.__class__ = cls
        self.check(network)
        assert not can_run_chain(block_of(network, 0).chain(), before, block_of(network, 0)) or cls is OwnUnit
        assert cls is not OwnUnit or not block_of(network, 0).has_standard_parts

    @pytest.mark.parametrize('part', ['units.0.norm', 'units.0.conv', 'units.1', 'connection'])
    def test_an_instance(self, part):
        network = small_network()
        module = block_of(network, 0).get_submodule(part)
        calls: list[int] = []
        forward = module.forward

        def noted(*args):
            calls.append(1)
            return forward(*args)

        module.forward = noted
        network(torch.randn(IMAGES))
        assert calls == [1]

    def test_weights(self):
        x = torch.randn(1, 3, 6, 5)
        conv = BinaryConv2d(3, 4, 3)
        expected = 3 * conv(x)
        conv.__class__ = OwnWeight
        assert not can_run_conv(conv, x)
        assert_close(conv(x), expected)


def test_parameters_handed_to_a_full_precision_shortcut_get_their_gradients():
    """``torch.func.functional_call`` sets the parameters of the module only during the forward pass."""
    network, x = small_network(binary_downsample=False), torch.randn(IMAGES)
    given = {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()}
    torch.func.functional_call(copy.deepcopy(network), given, x)[-1].square().sum().backward()
    network(x)[-1].square().sum().backward()
    for name, value in network.named_parameters():
        assert_close(given[name].grad, value.grad)


def test_hooks_on_parts_that_are_called_anyway_leave_a_tower_lean():
    tower = BinaryTower(6, 6, 2, 1, 2, True, dict(type='BN'), {})
    calls: list[int] = []
    for part in (tower.merge, tower.input_norms[0]):
        part.register_forward_hook(lambda *call: calls.append(1))
    x = torch.randn(2, 6, 9, 8)
    kept = saved_bytes(lambda: tower((x, 0)))
    assert calls == [1, 1]
    assert kept == saved_bytes(lambda: BinaryTower(6, 6, 2, 1, 2, True, dict(type='BN'), {})((x, 0)))
