"""Lean training against plain autograd: the same outputs, gradients and running statistics, and less memory."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d, Chain, ChainUnit, LayerwiseBinaryConv2d, run_chain
from mmgroupnet.models import BinaryFPN, GroupNetResNet
from mmgroupnet.models.dense_heads.binary_fcos_head import BinaryTower
from mmgroupnet.ops import Residual
from mmgroupnet.quantizers import ShiftedSign
from tests.lean_comparison import (
    DECOMPOSITIONS,
    PlainChain,
    Run,
    assert_lean_is_plain,
    assert_single_precision,
    block_of,
    call,
    outputs_and_gradients,
    randomise,
    saved_bytes,
    set_lean,
    small_network,
)
from tests.strategies import seeds

ACTIVATIONS = ('PolynomialSign', 'ClippedIdentitySign', 'ShiftedSign')
WEIGHTS = ('TensorScaleWeight', 'ChannelScaleWeight', 'UnscaledWeight')
# Largest allowed distance of gradients, relative to their norm.
WHOLE_NETWORK, SINGLE_BLOCK = 1e-9, 1e-5


@st.composite
def chains(draw) -> PlainChain:
    """Random chains of one or two units, in double precision."""
    torch.manual_seed(draw(seeds()))
    num_bases, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4, 9]))
    options = dict(
        num_bases=num_bases,
        activation=dict(type='mmgroupnet.' + draw(st.sampled_from(ACTIVATIONS))),
        weight=dict(type='mmgroupnet.' + draw(st.sampled_from(WEIGHTS))),
        padding_value=draw(st.sampled_from([-1, 0, 1])),
    )
    stride, kernel = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    out_channels = draw(st.sampled_from([channels, 6]))
    dilation = draw(st.sampled_from([1, list(range(1, num_bases + 1))]))
    first = BinaryConv2d(channels, out_channels, kernel, stride, 'same', dilation, **options)
    groups = 2 if out_channels % 2 == 0 and draw(st.booleans()) else 1
    second = BinaryConv2d(out_channels, out_channels, 3, 1, 'same', groups=groups, **options)

    def norm(size: int) -> nn.Module:
        return randomise(nn.BatchNorm2d(size, affine=draw(st.booleans()), momentum=draw(st.sampled_from([0.1, None]))))

    shortcut, residual = None, Residual.NONE
    keeps_shape = stride == 1 and out_channels == channels
    kinds = ['none', 'binary', 'float', 'pooled'] + (['identity', 'input'] if keeps_shape else [])
    kind = draw(st.sampled_from(kinds))
    if kind == 'input':
        residual = Residual.INPUT
    elif kind != 'none':
        residual = Residual.SHORTCUT
        if kind == 'binary':
            conv = BinaryConv2d(channels, out_channels, 1, stride, **dict(options, num_bases=1))
            shortcut = ChainUnit(conv, norm(out_channels), relu=False)
        elif kind == 'float':
            conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            shortcut = ChainUnit(conv, norm(out_channels), relu=False)
        elif kind == 'pooled':
            pooling = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            conv = nn.Sequential(pooling, nn.Conv2d(channels, out_channels, 1, bias=draw(st.booleans())))
            shortcut = ChainUnit(conv, norm(out_channels), relu=False)
    units = [ChainUnit(first, norm(num_bases * out_channels), residual=residual)]
    if draw(st.booleans()):
        units.append(ChainUnit(second, norm(num_bases * out_channels), residual=Residual.INPUT))
    gate = scales = None
    if draw(st.booleans()):
        gate, scales = torch.rand(num_bases), torch.rand(num_bases)
    chain = Chain(tuple(units), num_bases, shortcut, recompute=draw(st.booleans()))
    model = PlainChain(chain, gate, scales).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and draw(st.integers(0, 4)) == 0:
            module.eval()
    return model


def input_of(model: PlainChain, seed: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chain = model.chain_of
    return torch.randn(
        batch, chain.num_bases * chain.units[0].conv.in_channels, 6, 5, generator=generator, dtype=torch.float64
    )


def margin_of_signs(model: nn.Module, *inputs: Tensor, run: Run = call) -> float:
    """The smallest magnitude among the inputs of all signs in plain training."""
    plain = set_lean(copy.deepcopy(model), False)
    seen: list[float] = []

    def note(activation: nn.Module, inputs: tuple[Tensor]) -> None:
        (z,) = inputs
        if isinstance(activation, ShiftedSign):
            z = z + activation.shift.view(-1, 1, 1)
        seen.append(z.abs().min().item())

    for module in plain.modules():
        if isinstance(module, BinaryConv2d):
            module.activation.register_forward_pre_hook(note)
    run(plain, *inputs)
    return min(seen, default=1.0)


def has_lone_weights(model: nn.Module) -> bool:
    """Whether a conv has only one weight per output channel. The norm behind it removes this factor, so apart from the
    effect of eps its gradient is a sum that cancels; single precision cannot represent it."""
    return any(weight.dim() == 4 and weight[0].numel() == 1 for weight in model.convs.parameters())


class TestChains:
    @settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
    @given(chains(), seeds())
    def test_double_precision(self, model, seed):
        x = input_of(model, seed)
        assume(margin_of_signs(model, x) > 1e-9)
        assert_lean_is_plain(model, [x], WHOLE_NETWORK)

    @settings(
        deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )
    @given(chains(), seeds())
    def test_single_precision_on_equal_signs(self, model, seed):
        model, x = model.float(), input_of(model, seed).float()
        assume(margin_of_signs(model, x) > 1e-4 and not has_lone_weights(model))
        assert_single_precision(model, x, SINGLE_BLOCK)

    @settings(deadline=None, max_examples=40)
    @given(chains(), seeds())
    def test_channels_last_is_the_same(self, model, seed):
        x = input_of(model, seed).float()
        model = model.float()
        found = [
            outputs_and_gradients(copy.deepcopy(model), [x.contiguous(memory_format=layout)], call)
            for layout in (torch.contiguous_format, torch.channels_last)
        ]
        for name, value in found[0].items():
            if value is not None:
                assert_close(found[1][name], value, msg=lambda text, name=name: name + text)


NETWORKS = {
    **{name: dict(decomposition=name) for name in DECOMPOSITIONS},
    **{f'{name}, learned scales': dict(decomposition=name, learned_scales=True) for name in ('gbd_v1', 'lbd')},
    'gate per branch': dict(gate_per_branch=True, learned_scales=True),
    'BPAC': dict(strides=(1, 2, 1, 1), dilations=(1, 1, (2, 3, 4), (6, 7, 8))),
    'full-precision downsampling': dict(binary_downsample=False),
    'average downsampling': dict(binary_downsample=False, avg_down=True),
    'average in front of binary downsampling': dict(avg_down=True),
    'bottlenecks': dict(depth=50, base_channels=4),
    'one base': dict(num_bases=1),
    'frozen': dict(frozen_stages=2),
    'norm_eval': dict(norm_eval=True),
    'quantizers': dict(
        binary_cfg=dict(
            activation=dict(type='mmgroupnet.ShiftedSign'), weight=dict(type='mmgroupnet.ChannelScaleWeight')
        )
    ),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_whole_networks(name):
    torch.manual_seed(0)
    network = randomise(GroupNetResNet(**dict(depth=18, num_bases=3, base_channels=8) | NETWORKS[name])).double()
    assert_lean_is_plain(network.train(), [torch.randn(2, 3, 64, 48).double()], WHOLE_NETWORK)


def test_pyramid():
    torch.manual_seed(0)
    neck = randomise(BinaryFPN([8, 16, 32], 8, 5, num_bases=3, add_extra_convs='on_output')).double()
    maps = [torch.randn(2, channels, *size).double() for channels, size in ((8, (17, 12)), (16, (9, 6)), (32, (5, 3)))]
    assert_lean_is_plain(neck.train(), maps, WHOLE_NETWORK, lambda m, *maps: m(maps))


@pytest.mark.parametrize('in_channels', [8, 6])
def test_tower_whose_levels_share_convs(in_channels):
    torch.manual_seed(0)
    tower = randomise(BinaryTower(in_channels, 8, 3, 2, 3, True, dict(type='BN'), {})).double()
    maps = [torch.randn(2, in_channels, *size).double() for size in ((9, 12), (5, 6))]

    def run(tower: nn.Module, *maps: Tensor) -> list[Tensor]:
        return [tower((x, level)) for level, x in enumerate(maps)]

    assert_lean_is_plain(tower.train(), maps, WHOLE_NETWORK, run)


class TestWhatIsKept:
    @pytest.mark.parametrize('with_cp', [False, True])
    def test_a_block_keeps_its_input_and_sixteen_bits_a_sum(self, with_cp):
        network = small_network(with_cp=with_cp)
        block, merge = block_of(network, 0), network.stages[0][0].merge
        x = torch.randn(2, 16, 24, 20, requires_grad=True)
        kept = saved_bytes(lambda: block(x, merge))
        # For each of the two units: its scales, the mean and deviation, and the scale and shift of the norm. For the
        # block: the gate, which the branches share, and the scales of the merge.
        vectors = 2 * (16 * 4 + 2 * 16 * 8 + 2 * 16 * 4) + 4 + 2 * 4
        assert kept == x.numel() * (4 if with_cp else 4 + 2 * 2) + vectors

    def test_a_conv_keeps_its_input(self):
        for cls, channels in ((BinaryConv2d, 6), (LayerwiseBinaryConv2d, 3)):
            conv = cls(3, 4, 3, padding=1, num_bases=2)
            x = torch.randn(2, channels, 9, 8, requires_grad=True)
            # The input, and one scale for each base and channel.
            assert saved_bytes(lambda conv=conv, x=x: conv(x)) == 4 * x.numel() + 4 * 2 * 4


class TestCircumstances:
    def test_running_statistics_move_once_however_often_it_recomputes(self):
        network = small_network(with_cp=True)
        for out in network(torch.randn(2, 3, 32, 32)):
            out.sum().backward(retain_graph=True)
        for name, buffer in network.named_buffers():
            if name.endswith('num_batches_tracked'):
                assert buffer == 1, name

    def test_backward_twice(self):
        network = small_network()
        out = network(torch.randn(2, 3, 32, 32))[-1].sum()
        first = torch.autograd.grad(out, network.stem[0].weight, retain_graph=True)
        assert_close(torch.autograd.grad(out, network.stem[0].weight), first)

    def test_gradients_accumulate(self):
        network, x = small_network(norm_eval=True), torch.randn(4, 3, 32, 32)
        sum(out.sum() for out in network(x)).backward()
        whole = {name: value.grad for name, value in network.named_parameters()}
        network.zero_grad()
        for part in x.split(2):
            sum(out.sum() for out in network(part)).backward()
        for name, value in network.named_parameters():
            assert_close(value.grad, whole[name], rtol=1e-4, atol=1e-4 * whole[name].abs().max().item() + 1e-7)

    def test_compiled_models_train(self):
        network, x = small_network(stage_blocks=(1, 2)), torch.randn(2, 3, 32, 32)
        compiled = torch.compile(copy.deepcopy(network), backend='eager')
        for each in (network, compiled):
            each(x)[-1].sum().backward()
        for value, expected in zip(compiled.parameters(), network.parameters(), strict=True):
            assert_close(value.grad, expected.grad)

    @pytest.mark.slow
    @pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
    def test_compiled_plain_models_have_the_same_gradients(self, backend):
        network = small_network(stage_blocks=(1, 2), binary_cfg=dict(memory_efficient=False)).double()
        x = torch.randn(2, 3, 32, 32).double()
        compiled = torch.compile(copy.deepcopy(network), backend=backend)
        for each in (network, compiled):
            each(x)[-1].sum().backward()
        for value, expected in zip(compiled.parameters(), network.parameters(), strict=True):
            assert_close(value.grad, expected.grad)

    def test_deterministic(self):
        grads = []
        for _ in range(2):
            network = small_network()
            network(torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1)))[-1].sum().backward()
            grads.append([value.grad for value in network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))

    def test_weights_changed_in_between_are_noticed(self):
        network = small_network()
        out = network(torch.randn(2, 3, 32, 32))[-1].sum()
        with torch.no_grad():
            block_of(network, 0).units[0].conv.weight.add_(1)
        with pytest.raises(RuntimeError, match='modified by an inplace operation'):
            out.backward()

    def test_sums_beyond_sixteen_bits_stay_floats(self):
        conv = BinaryConv2d(3700, 2, 3, padding=1)
        x = torch.ones(1, 3700, 2, 2, requires_grad=True)
        with torch.no_grad():
            conv.weight.fill_(1)
        chain = Chain((ChainUnit(conv, nn.BatchNorm2d(2).eval()),), 1)
        assert_close(run_chain(chain, x), torch.full((1, 2, 2, 2), 33300.0), rtol=1e-4, atol=0)
