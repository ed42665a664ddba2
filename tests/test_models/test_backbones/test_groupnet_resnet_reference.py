"""GroupNetResNet against a plain loop over branches without folding: every branch has its own convs and norms; sharing,
merging and gates follow the formulas. The tests compare values and gradients in float64."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.models.backbones import GroupNetResNet
from mmgroupnet.quantizers import RealWeight, Tanh
from tests.references import reference_conv, reference_sign, reference_weight, same_padding

TOLERANCE = dict(rtol=1e-9, atol=1e-9)
DECOMPOSITIONS = ['lbd', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'soft_gate']
# With two blocks per stage, the decompositions give different networks. The height of the maps is odd.
TINY = dict(base_channels=4, stage_blocks=(2, 2), strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def weighted_sum(outs: list[Tensor], scales: Tensor | None) -> Tensor:
    """The sum with one learned scale per output, or the mean if there are no scales."""
    if scales is None:
        return sum(outs) / len(outs)
    return sum(scale * out for scale, out in zip(scales, outs, strict=True))


class ReferenceConv(nn.Module):
    """Merged outputs of binary convs with the same input; a single conv except in layer-wise decomposition."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride, dilation, num_convs, scaled, padding_value, real_valued
    ):
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weights = nn.ParameterList(torch.empty(shape) for _ in range(num_convs))
        self.scales = nn.Parameter(torch.empty(num_convs)) if scaled else None
        self.padding = same_padding(shape[2:], dilation)
        self.options = dict(stride=stride, dilation=dilation, padding_value=padding_value)
        if real_valued:
            self.options.update(sign=torch.tanh, quantize=lambda weight: weight)
        else:
            self.options.update(sign=reference_sign, quantize=reference_weight)

    def forward(self, x: Tensor) -> Tensor:
        outs = [reference_conv(x, weight, padding=self.padding, **self.options) for weight in self.weights]
        return weighted_sum(outs, self.scales)


class BasicBranch(nn.Module):
    """One branch of a block of ResNet-18 and 34."""

    expansion = 1

    def __init__(self, in_channels, channels, stride, dilation, **options):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ReferenceConv(in_channels, channels, 3, stride, dilation, **options),
                ReferenceConv(channels, channels, 3, 1, dilation, **options),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        o = self.norms[0](F.relu(self.convs[0](x))) + shortcut
        return self.norms[1](F.relu(self.convs[1](o))) + o


class BottleneckBranch(nn.Module):
    """One branch of a block of ResNet-50 and 101."""

    expansion = 4

    def __init__(self, in_channels, channels, stride, dilation, **options):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ReferenceConv(in_channels, channels, 1, 1, 1, **options),
                ReferenceConv(channels, channels, 3, stride, dilation, **options),
                ReferenceConv(channels, 4 * channels, 1, 1, 1, **options),
            ]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (channels, channels, 4 * channels))

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        out = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            new = norm(F.relu(conv(out)))
            out = new + out if new.shape == out.shape else new
        return out + shortcut


class ReferenceShortcut(nn.Module):
    """The shortcut around a block, which the branches share; its norm takes joint statistics over all branches."""

    def __init__(self, in_channels, out_channels, stride, binary, avg_down, **options):
        super().__init__()
        self.pool = stride if avg_down else 1
        stride = 1 if avg_down else stride
        if binary:
            self.conv = ReferenceConv(in_channels, out_channels, 1, stride, 1, **options)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        if self.pool > 1:
            branches = [F.avg_pool2d(x, self.pool, ceil_mode=True, count_include_pad=False) for x in branches]
        return list(self.norm(torch.cat([self.conv(x) for x in branches])).chunk(len(branches)))


class ReferenceBlock(nn.Module):
    def __init__(self, branches, shortcut, gates, scaled):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.shortcut = shortcut
        self.theta = nn.Parameter(torch.empty(gates))
        self.scales = nn.Parameter(torch.empty(len(branches))) if scaled else None

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        shortcuts = xs if self.shortcut is None else self.shortcut(xs)
        return [branch(x, shortcut) for branch, x, shortcut in zip(self.branches, xs, shortcuts, strict=True)]

    def merge(self, outs: list[Tensor]) -> Tensor:
        return weighted_sum(outs, self.scales)


class ReferenceGroupNet(nn.Module):
    def __init__(
        self,
        branch,
        num_bases,
        decomposition,
        base_channels,
        stage_blocks,
        strides,
        dilations,
        out_indices,
        gate_per_branch=False,
        learned_scales=False,
        in_place_sum=False,
        stem_bias=False,
        binary_downsample=True,
        avg_down=False,
        padding_value=1,
        real_valued=False,
    ):
        super().__init__()
        self.decomposition, self.out_indices, self.in_place_sum = decomposition, out_indices, in_place_sum
        self.num_branches = 1 if decomposition == 'lbd' else num_bases
        layerwise = decomposition == 'lbd'
        options = dict(
            num_convs=num_bases if layerwise else 1,
            scaled=learned_scales and layerwise,
            padding_value=padding_value,
            real_valued=real_valued,
        )
        self.conv = nn.Conv2d(3, base_channels, 7, 2, 3, bias=stem_bias)
        self.norm = nn.BatchNorm2d(base_channels)
        self.stages = nn.ModuleList()
        width = base_channels
        for stage, (num_blocks, stride, dilation) in enumerate(zip(stage_blocks, strides, dilations, strict=True)):
            rates = [dilation] * self.num_branches if isinstance(dilation, int) else dilation
            channels = base_channels * 2**stage
            blocks = nn.ModuleList()
            for _ in range(num_blocks):
                shortcut = None
                if stride != 1 or width != channels * branch.expansion:
                    shortcut = ReferenceShortcut(
                        width, channels * branch.expansion, stride, binary_downsample, avg_down, **options
                    )
                branches = [branch(width, channels, stride, rate, **options) for rate in rates]
                gates = self.num_branches if gate_per_branch else 1
                blocks.append(ReferenceBlock(branches, shortcut, gates, learned_scales and not layerwise))
                width, stride = channels * branch.expansion, 1
            self.stages.append(blocks)

    def connect(self, xs: list[Tensor], last: ReferenceBlock, block: ReferenceBlock, stage_begins: bool):
        merged = last.merge(xs)
        if self.decomposition == 'gbd_v1' or (self.decomposition == 'gbd_v2' and stage_begins):
            return [merged] * len(xs)
        if self.decomposition == 'soft_gate':
            gates = torch.sigmoid(block.theta).expand(len(xs))
            if self.in_place_sum:
                xs = [sum(xs), *xs[1:]]
            return [c * x + (1 - c) * merged for c, x in zip(gates, xs, strict=True)]
        return xs

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.norm(F.max_pool2d(self.conv(x), 3, 2, 1))
        xs = [x] * self.num_branches
        last, outs = None, []
        for stage, blocks in enumerate(self.stages):
            for index, block in enumerate(blocks):
                if last is not None:
                    xs = self.connect(xs, last, block, stage_begins=index == 0)
                xs = block(xs)
                last = block
            if stage in self.out_indices:
                outs.append(last.merge(xs))
        return outs


def norm_tensors(norm: nn.Module) -> list[Tensor]:
    return [norm.weight, norm.bias, norm.running_mean, norm.running_var]


def conv_pairs(conv: nn.Module, references: list[nn.Module]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    if isinstance(conv, nn.Conv2d):
        yield conv.weight, [references[0].weight]
        return
    yield conv.weight, [weight for reference in references for weight in reference.weights]
    if hasattr(getattr(conv, 'merge', None), 'scales'):
        yield conv.merge.scales, [references[0].scales]


def block_pairs(block: nn.Module, reference: ReferenceBlock) -> Iterator[tuple[Tensor, list[Tensor]]]:
    for index, unit in enumerate(block.units):
        yield from conv_pairs(unit.conv, [branch.convs[index] for branch in reference.branches])
        norms = [norm_tensors(branch.norms[index]) for branch in reference.branches]
        yield from zip(norm_tensors(unit.norm), map(list, zip(*norms, strict=True)), strict=True)
    if block.shortcut is not None:
        yield from conv_pairs(block.shortcut[-2], [reference.shortcut.conv])
        norms = zip(norm_tensors(block.shortcut[-1]), norm_tensors(reference.shortcut.norm), strict=True)
        yield from ((folded, [tensor]) for folded, tensor in norms)
    if hasattr(block.connection, 'theta'):
        yield block.connection.theta, [reference.theta]
    if hasattr(block.merge, 'scales'):
        yield block.merge.scales, [reference.scales]


def pairs(net: GroupNetResNet, reference: ReferenceGroupNet) -> list[tuple[Tensor, list[Tensor]]]:
    """All tensors of the folded network, each with the tensors of the reference whose concatenation it is."""
    found = [(net.stem[0].weight, [reference.conv.weight])]
    found += [] if net.stem[0].bias is None else [(net.stem[0].bias, [reference.conv.bias])]
    found += [(a, [b]) for a, b in zip(norm_tensors(net.stem[2]), norm_tensors(reference.norm), strict=True)]
    for blocks, reference_blocks in zip(net.stages, reference.stages, strict=True):
        for block, reference_block in zip(blocks, reference_blocks, strict=True):
            found += block_pairs(block, reference_block)
    floats = [tensor for tensor in net.state_dict(keep_vars=True).values() if tensor.is_floating_point()]
    assert {id(folded) for folded, _ in found} == {id(tensor) for tensor in floats}
    return found


@torch.no_grad()
def randomise(net: GroupNetResNet) -> None:
    """Draws all learned parameters and the running statistics.

    Latent weights are drawn so that their scales, and therefore all sums of a binary conv, are exact in floating point.
    Otherwise a sum that should be zero is 1e-17 in one order of summation and -1e-17 in another, and the ReLU behind
    the conv passes the gradient in only one of the networks.
    """
    for module in net.modules():
        if isinstance(module, BinaryConv2d):
            count = module.weight.numel()  # a multiple of the size of one conv and of the number of averaged convs
            weight = (
                torch.randint(1, 512, module.weight.shape) * count * (2 * torch.randint(2, module.weight.shape) - 1)
            )
            module.weight.copy_(weight / 2 ** round(math.log2(count * 1024)))
            if hasattr(getattr(module, 'merge', None), 'scales'):
                module.merge.scales.copy_(torch.randint(1, 16, (module.num_bases,)) / 16)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif hasattr(module, 'theta'):
            nn.init.normal_(module.theta)


def build(depth: int, num_bases: int, decomposition: str, **options) -> GroupNetResNet:
    net = GroupNetResNet(depth, num_bases, decomposition, **(TINY | options)).double()
    randomise(net)
    return net


def build_reference(net: GroupNetResNet, depth: int, num_bases: int, decomposition: str, **options):
    options = TINY | options
    options |= options.pop('binary_cfg', {})
    branch = BasicBranch if depth < 50 else BottleneckBranch
    reference = ReferenceGroupNet(branch, num_bases, decomposition, **options).double()
    with torch.no_grad():
        for folded, pieces in pairs(net, reference):
            for piece, values in zip(pieces, folded.chunk(len(pieces)), strict=True):
                piece.copy_(values)
    return reference


def gradients(outs: list[Tensor], upstream: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return torch.autograd.grad(outs, leaves, upstream, allow_unused=True, materialize_grads=True)


def image() -> Tensor:
    return torch.randn(2, 3, 37, 50, dtype=torch.float64, requires_grad=True)


def check(mode: str, *args, **options) -> None:
    """Builds both networks with the same weights; compares outputs, all gradients and the running statistics."""
    net = build(*args, **options)
    reference = build_reference(net, *args, **options)
    net.train(mode == 'train')
    reference.train(mode == 'train')
    x = image()
    outs, expected = net(x), reference(x)
    assert len(outs) == len(expected) == len(net.out_indices)
    for out, reference_out in zip(outs, expected, strict=True):
        assert_close(out, reference_out, **TOLERANCE)

    upstream = [torch.randn_like(out) for out in outs]
    found = pairs(net, reference)
    learned = [(folded, pieces) for folded, pieces in found if folded.requires_grad]
    assert len(learned) == len(list(net.parameters()))
    folded_gradients = gradients(list(outs), upstream, [x, *(folded for folded, _ in learned)])
    pieces = [piece for _, pieces in learned for piece in pieces]
    reference_gradients = list(gradients(expected, upstream, [x, *pieces]))
    assert_close(folded_gradients[0], reference_gradients.pop(0), **TOLERANCE)
    assert folded_gradients[0].abs().sum() > 0
    for gradient, (_, pieces) in zip(folded_gradients[1:], learned, strict=True):
        gathered = torch.cat([reference_gradients.pop(0) for _ in pieces])
        assert_close(gradient, gathered, **TOLERANCE)

    for folded, pieces in found:
        if not folded.requires_grad:
            assert_close(folded, torch.cat(pieces), **TOLERANCE)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('num_bases', [1, 2, 3])
@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
@pytest.mark.parametrize('depth', [18, 50])
def test_decompositions(depth, decomposition, num_bases, mode):
    check(mode, depth, num_bases, decomposition)


@pytest.mark.parametrize(
    'options',
    [
        dict(learned_scales=True),
        dict(binary_downsample=False),
        dict(avg_down=True),
        dict(binary_downsample=False, avg_down=True, learned_scales=True),
        dict(strides=(2, 1), dilations=(1, 3)),
        dict(binary_cfg=dict(padding_value=-1)),
        dict(binary_cfg=dict(padding_value=0)),
        dict(real_valued=True),
        dict(out_indices=(1,), learned_scales=True),
        dict(out_indices=(0,), learned_scales=True),
        dict(stage_blocks=(1, 2, 1), strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2)),
    ],
    ids=lambda options: '-'.join(f'{key}={value}' for key, value in options.items()),
)
@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
@pytest.mark.parametrize('depth', [18, 50])
def test_options(depth, decomposition, options):
    check('train', depth, 2, decomposition, **options)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('learned_scales', [False, True])
@pytest.mark.parametrize('num_bases', [1, 3])
@pytest.mark.parametrize('depth', [18, 50])
def test_one_gate_per_branch(depth, num_bases, learned_scales, mode):
    check(mode, depth, num_bases, 'soft_gate', gate_per_branch=True, learned_scales=learned_scales)


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize('gate_per_branch', [False, True])
@pytest.mark.parametrize('num_bases', [1, 3])
@pytest.mark.parametrize('depth', [18, 50])
def test_sum_in_place_and_biased_stem(depth, num_bases, gate_per_branch, mode):
    check(mode, depth, num_bases, 'soft_gate', gate_per_branch=gate_per_branch, in_place_sum=True, stem_bias=True)


@pytest.mark.parametrize('decomposition', DECOMPOSITIONS[1:])
@pytest.mark.parametrize('depth', [18, 50])
def test_one_dilation_per_branch(depth, decomposition):
    check('train', depth, 3, decomposition, strides=(1, 1), dilations=(1, [2, 3, 4]))


class TestGatesBetweenVersions:
    """Soft gates interpolate between GBD v1 (closed) and v3 (open)."""

    @pytest.mark.parametrize('learned_scales', [False, True])
    @pytest.mark.parametrize('depth', [18, 50])
    @pytest.mark.parametrize('decomposition, theta', [('gbd_v1', -torch.inf), ('gbd_v3', torch.inf)])
    def test_extremes(self, depth, decomposition, theta, learned_scales):
        gated = build(depth, 3, 'soft_gate', learned_scales=learned_scales)
        gates = [module.theta for module in gated.modules() if hasattr(module, 'theta')]
        assert len(gates) == 3  # in front of every block but the first
        for gate in gates:
            nn.init.constant_(gate, theta)
        plain = build(depth, 3, decomposition, learned_scales=learned_scales)
        missing, unexpected = plain.load_state_dict(gated.state_dict(), strict=False)
        assert not missing
        assert all(key.endswith(('.theta', '.merge.scales')) for key in unexpected)

        x = image()
        outs, expected = gated(x), plain(x)
        upstream = [torch.randn_like(out) for out in outs]
        for out, reference in zip(outs, expected, strict=True):
            assert_close(out, reference, **TOLERANCE)
        names = [name for name, _ in plain.named_parameters()]
        leaves = [[x, *(dict(net.named_parameters())[name] for name in names)] for net in (gated, plain)]
        pairs_of_gradients = zip(
            gradients(list(outs), upstream, leaves[0]), gradients(list(expected), upstream, leaves[1]), strict=True
        )
        for gradient, reference in pairs_of_gradients:
            assert_close(gradient, reference, **TOLERANCE)

    def test_half_open_gates_are_neither(self):
        gated = build(18, 3, 'soft_gate').eval()
        x = image()
        for decomposition in ('gbd_v1', 'gbd_v3'):
            plain = build(18, 3, decomposition).eval()
            plain.load_state_dict(gated.state_dict(), strict=False)
            assert (gated(x)[-1] - plain(x)[-1]).abs().max() > 1e-3

    @pytest.mark.parametrize('decomposition', DECOMPOSITIONS[1:])
    def test_one_base_is_the_same_network_everywhere(self, decomposition):
        gated, plain = build(18, 1, 'soft_gate').eval(), build(18, 1, decomposition).eval()
        plain.load_state_dict(gated.state_dict(), strict=False)
        x = image()
        for out, reference in zip(plain(x), gated(x), strict=True):
            assert_close(out, reference, **TOLERANCE)


class TestParameterCounts:
    """Counts of the released ResNet-18 with K = 5 and a classifier of 1000 classes."""

    classifier = 512 * 1000 + 1000

    @staticmethod
    def count(num_bases: int = 5, **options) -> int:
        with torch.device('meta'):
            net = GroupNetResNet(18, num_bases, **options)
        return sum(parameter.numel() for parameter in net.parameters())

    def test_plain_averaging(self):
        assert self.count() + self.classifier == 55_662_127

    def test_learned_scales_and_a_biased_stem(self):
        stem_bias = 64
        assert self.count(learned_scales=True) + stem_bias + self.classifier == 55_662_231

    @pytest.mark.parametrize('decomposition', DECOMPOSITIONS[1:4])
    def test_only_soft_gates_have_gates(self, decomposition):
        gates = 7  # eight blocks; the first one has no gate
        assert self.count() - self.count(decomposition=decomposition) == gates
        assert self.count(gate_per_branch=True) - self.count(decomposition=decomposition) == 5 * gates

    def test_dilations_cost_nothing(self):
        dilations = (1, 1, (2, 3, 4, 5, 6), (6, 7, 8, 9, 10))
        assert self.count(strides=(1, 2, 1, 1), dilations=dilations) == self.count()

    def test_one_base_has_as_many_as_a_float_network(self):
        # ResNet-18 has 11,689,512 parameters including its classifier; the seven gates are added.
        assert self.count(1) + self.classifier == 11_689_512 + 7


class TestRealValued:
    @pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
    def test_same_state_dict(self, decomposition):
        real = build(18, 2, decomposition, real_valued=True, learned_scales=True)
        binary = build(18, 2, decomposition, learned_scales=True)
        shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (real, binary)]
        assert shapes[0] == shapes[1]
        binary.load_state_dict(real.state_dict())
        x = image()
        assert (binary.eval()(x)[-1] - real.eval()(x)[-1]).abs().max() > 1e-3

    def test_tanh_and_raw_weights_everywhere(self):
        net = build(50, 2, 'soft_gate', real_valued=True)
        convs = [module for module in net.modules() if isinstance(module, BinaryConv2d)]
        assert len(convs) == 14  # four blocks of three convs, two shortcuts
        assert all(type(conv.activation) is Tanh and type(conv.weight_quantizer) is RealWeight for conv in convs)

    def test_padding_value_may_be_given(self):
        net = build(18, 2, 'soft_gate', real_valued=True, binary_cfg=dict(padding_value=0))
        assert {conv.padding_value for conv in net.modules() if isinstance(conv, BinaryConv2d)} == {0}


@pytest.mark.parametrize('frozen_stages', [-1, 1])
@pytest.mark.parametrize('decomposition', DECOMPOSITIONS)
def test_with_cp_gives_equal_gradients(decomposition, frozen_stages):
    options = dict(learned_scales=True, frozen_stages=frozen_stages)
    plain = build(18, 2, decomposition, **options).train()
    saving = build(18, 2, decomposition, with_cp=True, **options).train()
    saving.load_state_dict(plain.state_dict())
    calls = []
    saving.stages[1][1].units[0].conv.register_forward_hook(lambda *_: calls.append(1))
    x = image()
    outs, saved_outs = plain(x), saving(x)
    upstream = [torch.randn_like(out) for out in outs]
    torch.autograd.backward(outs, upstream)
    gradient, x.grad = x.grad, None
    assert len(calls) == 1
    torch.autograd.backward(saved_outs, upstream)
    assert len(calls) == 2  # the block ran again
    assert (gradient is None) == (x.grad is None)
    if gradient is not None:
        assert_close(x.grad, gradient, **TOLERANCE)
    for out, saved in zip(outs, saved_outs, strict=True):
        assert_close(saved, out, **TOLERANCE)
    for (name, parameter), saved in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (parameter.grad is None) == (not parameter.requires_grad), name
        if parameter.requires_grad:
            assert_close(saved.grad, parameter.grad, **TOLERANCE)
