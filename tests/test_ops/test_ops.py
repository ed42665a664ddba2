"""The ops in torch: their registration, their shape functions, and errors for wrong arguments."""

import pytest
import torch
from torch import Tensor, nn

from mmgroupnet import ops
from mmgroupnet.layers.packed import PackedChain, PackedUnit
from mmgroupnet.ops import Connection, Residual
from tests.test_ops.oracle import PARAMETERS, Block, Unit, dyadic, geometry, random_unit

NUM_BASES, CHANNELS = 2, 20


@pytest.fixture
def block() -> Block:
    """A gated basic block that halves the map, with all optional parameters."""
    units = [
        geometry(in_channels=CHANNELS, out_channels=24, stride=(2, 2), relu=True, residual=Residual.SHORTCUT),
        geometry(in_channels=24, out_channels=24, relu=True, residual=Residual.INPUT),
    ]
    shortcut = geometry(
        num_bases=1,
        in_channels=CHANNELS,
        out_channels=24,
        kernel_size=(1, 1),
        padding=(0, 0),
        stride=(2, 2),
        shares_weights=True,
    )
    return Block(
        Connection.GATED,
        NUM_BASES,
        [random_unit(unit, PARAMETERS) for unit in units],
        merge_scales=torch.tensor([0.5, 0.25]),
        gate=torch.tensor([0.25, 0.5]),
        shortcut=random_unit(shortcut, PARAMETERS),
    )


@pytest.fixture
def x() -> Tensor:
    return dyadic(2, NUM_BASES * CHANNELS, 7, 5)


def packed_unit(unit: Unit) -> PackedUnit:
    return PackedUnit(unit.geometry, dict(unit.parameters, bits=ops.pack_weight(unit.weight)))


def packed_chain(block: Block) -> PackedChain:
    return PackedChain(
        block.connection,
        block.num_bases,
        [packed_unit(unit) for unit in block.units],
        gate=block.gate,
        shortcut=packed_unit(block.shortcut),
    )


class TestRegistration:
    """Schemas, shape functions (also with dynamic shapes) and autograd registration, by torch's own checks."""

    def test_sign_pack(self, x):
        torch.library.opcheck(ops.sign_pack, (x, NUM_BASES))
        torch.library.opcheck(ops.sign_pack, (x.contiguous(memory_format=torch.channels_last), 1))

    def test_convolve(self, x):
        for overrides in (dict(stride=(2, 1)), dict(padding=None, dilations=(1, 2)), dict(shares_weights=True)):
            unit = random_unit(geometry(in_channels=CHANNELS, out_channels=70, **overrides))
            torch.library.opcheck(ops.convolve, (x, ops.pack_weight(unit.weight), unit.numbers))

    @pytest.mark.parametrize('gated', [False, True], ids=['merged', 'gated'])
    def test_connect(self, x, gated):
        gate = torch.tensor([0.25, 0.5]) if gated else None
        torch.library.opcheck(ops.connect, (x, NUM_BASES, None, gate))

    def test_run_block(self, x, block):
        torch.library.opcheck(ops.run_block, (x, *block.arguments))


class TestShapeFunctions:
    """Outputs on the meta device have the shape, dtype and strides of real outputs."""

    @staticmethod
    def assert_same_on_meta(op, x: Tensor, *arguments) -> None:
        def to_meta(argument):
            if isinstance(argument, list):
                return [to_meta(entry) for entry in argument]
            return argument.to('meta') if isinstance(argument, Tensor) else argument

        for memory_format in (torch.contiguous_format, torch.channels_last):
            given = x.contiguous(memory_format=memory_format)
            real, fake = op(given, *arguments), op(to_meta(given), *map(to_meta, arguments))
            assert fake.device.type == 'meta'
            assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())

    @pytest.mark.parametrize('branches', [1, 2])
    def test_sign_pack(self, kernel_set, x, branches):
        self.assert_same_on_meta(ops.sign_pack, x, branches)

    @pytest.mark.parametrize('given', [1, NUM_BASES])
    @pytest.mark.parametrize(
        'overrides',
        [
            dict(),
            dict(stride=(2, 3), kernel_size=(2, 3)),
            dict(padding=None, dilations=(1, 3)),
            dict(shares_weights=True),
            dict(merges=True),
        ],
        ids=str,
    )
    def test_convolve(self, kernel_set, x, overrides, given):
        unit = random_unit(geometry(in_channels=CHANNELS, out_channels=33, **overrides))
        self.assert_same_on_meta(ops.convolve, x[:, : given * CHANNELS], ops.pack_weight(unit.weight), unit.numbers)

    @pytest.mark.parametrize('gate', [None, torch.tensor([0.5, 0.5])], ids=['merged', 'gated'])
    def test_connect(self, kernel_set, x, gate):
        self.assert_same_on_meta(ops.connect, x, NUM_BASES, None, gate)

    @pytest.mark.parametrize('connection', list(Connection), ids=lambda connection: connection.name.lower())
    def test_run_block(self, kernel_set, x, block, connection):
        block.connection = connection
        block.gate = block.gate if connection == Connection.GATED else None
        given = CHANNELS if connection == Connection.BROADCAST else NUM_BASES * CHANNELS
        self.assert_same_on_meta(ops.run_block, x[:, :given], *block.arguments)

    def test_run_block_layerwise(self, kernel_set, x):
        numbers = geometry(in_channels=CHANNELS, out_channels=33, merges=True)
        block = Block(Connection.SEPARATE, 1, [random_unit(numbers)])
        self.assert_same_on_meta(ops.run_block, x[:, :CHANNELS], *block.arguments)


class TestPackedModules:
    """Packed modules give the same results when they are compiled, traced or exported."""

    def test_chain(self, block, x):
        block.merge_scales = None
        assert torch.equal(packed_chain(block)(x), block.run_oracle(x)[0])

    def test_layerwise_unit(self, kernel_set):
        """A unit that adds up several bases also runs without a block; it has one branch."""
        unit = random_unit(geometry(num_bases=3, in_channels=CHANNELS, merges=True, relu=True), PARAMETERS)
        x = dyadic(2, CHANNELS, 7, 5)
        expected, _ = Block(Connection.SEPARATE, 1, [unit]).run_oracle(x)
        assert torch.equal(packed_unit(unit)(x), expected)

    def test_compiled(self, block, x):
        block.merge_scales = None
        chain = packed_chain(block)
        compiled = torch.compile(chain, fullgraph=True, backend='aot_eager')
        with torch.no_grad():
            assert torch.equal(compiled(x), chain(x))
            other = dyadic(1, NUM_BASES * CHANNELS, 9, 6)  # compiles the module again, for dynamic shapes
            out = compiled(other)
        assert torch.equal(out, chain(other))
        assert out.is_contiguous(memory_format=torch.channels_last)

    def test_traced(self, block, x):
        block.merge_scales = None
        chain = packed_chain(block)
        traced = torch.jit.trace(chain, x)
        other = dyadic(2, NUM_BASES * CHANNELS, 7, 5) * -2
        assert torch.equal(traced(other), chain(other))

    def test_exported(self, block, x):
        block.merge_scales = None
        model = nn.Sequential(packed_chain(block), packed_unit(random_unit(geometry(in_channels=24), PARAMETERS)))
        height, width = torch.export.Dim('height', min=3, max=64), torch.export.Dim('width', min=3, max=64)
        exported = torch.export.export(model, (x,), dynamic_shapes=({2: height, 3: width},))
        assert sum('run_block' in str(node.target) for node in exported.graph.nodes) == 2
        for size in ((7, 5), (12, 11)):
            other = dyadic(2, NUM_BASES * CHANNELS, *size)
            assert torch.equal(exported.module()(other), model(other))


class TestGradients:
    """The ops have no gradients: calling backward raises an error, or the output does not require a gradient."""

    def test_run_block(self, block, x):
        out = block.run_op(x.requires_grad_())
        with pytest.raises(RuntimeError, match='backward'):
            out.sum().backward()

    def test_connect(self, x):
        out = ops.connect(x.requires_grad_(), NUM_BASES, None, None)
        with pytest.raises(RuntimeError, match='backward'):
            out.sum().backward()

    def test_integers_have_none(self, x):
        unit = random_unit(geometry(in_channels=CHANNELS))
        x.requires_grad_()
        assert not ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers).requires_grad
        assert not ops.sign_pack(x, NUM_BASES).requires_grad


def calls(x: Tensor) -> dict:
    """One call of each op with ``x``; a correct ``x`` has two branches of 20 channels."""
    unit = random_unit(geometry(in_channels=CHANNELS))
    return dict(
        sign_pack=lambda: ops.sign_pack(x, NUM_BASES),
        convolve=lambda: ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers),
        connect=lambda: ops.connect(x, NUM_BASES, None, None),
        run_block=lambda: Block(Connection.SEPARATE, NUM_BASES, [unit]).run_op(x),
    )


@pytest.mark.parametrize('name', ['sign_pack', 'convolve', 'connect', 'run_block'])
class TestWrongInputs:
    @pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
    def test_dtype(self, kernel_set, name, x, dtype):
        with pytest.raises(ValueError, match=f'input of {dtype}: packed ops compute in float32'):
            calls(x.to(dtype))[name]()

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
    def test_integers(self, name, x, dtype):
        with pytest.raises(ValueError, match=f'input of {dtype}: packed ops compute in float32'):
            calls(x.to(dtype))[name]()

    def test_dimensions(self, kernel_set, name, x):
        with pytest.raises(ValueError, match=r'input of shape \(40, 7, 5\): packed ops take \(N, C, H, W\)'):
            calls(x[0])[name]()

    def test_channels(self, kernel_set, name, x):
        with pytest.raises(ValueError, match=r'input of shape \(2, 39, 7, 5\): the op takes \(N, .*, H, W\)'):
            calls(x[:, :39])[name]()

    def test_empty_batch(self, kernel_set, name, x):
        assert calls(x[:0])[name]().shape[0] == 0


class TestChannels:
    """The message states the allowed numbers of channels."""

    def test_convolve(self, x):
        unit = random_unit(geometry(in_channels=16))
        with pytest.raises(ValueError, match=r'takes \(N, 1 \* 16 or 2 \* 16, H, W\)'):
            ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers)

    def test_broadcast_takes_one_map(self, x):
        block = Block(Connection.BROADCAST, NUM_BASES, [random_unit(geometry(in_channels=CHANNELS))])
        assert block.run_op(x[:, :CHANNELS]).shape == (2, 32, 7, 5)
        with pytest.raises(ValueError, match=r'takes \(N, 1 \* 20, H, W\)'):
            block.run_op(x)

    def test_separate_takes_all_maps(self, x):
        block = Block(Connection.SEPARATE, NUM_BASES, [random_unit(geometry(in_channels=CHANNELS))])
        with pytest.raises(ValueError, match=r'takes \(N, 2 \* 20, H, W\)'):
            block.run_op(x[:, :CHANNELS])


class TestWrongParameters:
    """The kernels would read beyond the end of tensors with a wrong size or layout, so the ops refuse them."""

    @pytest.mark.parametrize(
        'change',
        [lambda bits: bits[:-1], lambda bits: bits[:, :-1], lambda bits: bits.float()],
        ids=['rows', 'bytes', 'dtype'],
    )
    def test_bits(self, x, change):
        unit = random_unit(geometry(in_channels=CHANNELS))
        with pytest.raises(ValueError, match='bits'):
            ops.convolve(x, change(ops.pack_weight(unit.weight)), unit.numbers)

    @pytest.mark.parametrize('places', [[], [0, 0], [0, 1, 2], [0, 21], [-1, 0]], ids=str)
    def test_places(self, block, x, places):
        arguments = list(block.arguments)
        arguments[5:7] = arguments[5][:2], places
        with pytest.raises(ValueError, match=f'places={places} for 3 units and 2 parameters'.replace('[', r'\[')):
            ops.run_block(x, *arguments)

    @pytest.mark.parametrize('name', ['merge_scales', 'gate'])
    def test_one_of_each_branch(self, x, name):
        parameters = {'merge_scales': None, 'gate': None, name: torch.ones(NUM_BASES - 1)}
        with pytest.raises(ValueError, match=name):
            ops.connect(x, NUM_BASES, **parameters)

    @pytest.mark.parametrize('name', PARAMETERS)
    def test_one_of_each_channel(self, x, name):
        unit = random_unit(geometry(in_channels=CHANNELS), PARAMETERS)
        unit.parameters[name] = unit.parameters[name][:-1]
        with pytest.raises(ValueError, match=name):
            Block(Connection.SEPARATE, NUM_BASES, [unit]).run_op(x)

    def test_shortcut_map(self, x):
        unit = random_unit(geometry(in_channels=CHANNELS, residual=Residual.SHORTCUT))
        with pytest.raises(ValueError, match='residual=SHORTCUT: .* cannot be added to'):
            Block(Connection.SEPARATE, NUM_BASES, [unit], shortcut_map=torch.ones(2, 16, 7, 5)).run_op(x)

    @pytest.mark.parametrize('shape', [(1, 32, 7, 5), (2, 33, 7, 5), (2, 64, 7, 5), (2, 32, 7, 6)], ids=str)
    def test_shortcut_map_that_no_unit_adds(self, x, shape):
        unit = random_unit(geometry(in_channels=CHANNELS))
        with pytest.raises(ValueError, match=r'shortcut_map .*: give the shape of the output, \(2, 32, 7, 5\)'):
            Block(Connection.SEPARATE, NUM_BASES, [unit], shortcut_map=torch.ones(shape)).run_op(x)

    def test_shortcut_map_of_a_unit_in_the_middle(self, x):
        """Kernels read the shortcut map with the output's number of channels, but this unit has half as many."""
        units = [
            random_unit(geometry(in_channels=CHANNELS, residual=Residual.SHORTCUT)),
            random_unit(geometry(out_channels=32)),
        ]
        block = Block(Connection.SEPARATE, NUM_BASES, units, shortcut_map=torch.ones(2, 32, 7, 5))
        with pytest.raises(ValueError, match=r'shortcut_map .*: give the shape of the output, \(2, 64, 7, 5\)'):
            block.run_op(x)

    def test_shortcut_map_of_another_type(self, x):
        unit = random_unit(geometry(in_channels=CHANNELS, residual=Residual.SHORTCUT))
        block = Block(Connection.SEPARATE, NUM_BASES, [unit], shortcut_map=torch.ones(2, 32, 7, 5).half())
        with pytest.raises(ValueError, match='shortcut_map of torch.float16: packed ops compute in float32'):
            block.run_op(x)

    def test_two_shortcuts(self, block, x):
        block.shortcut_map = torch.ones(2, 48, 4, 3)
        with pytest.raises(ValueError, match='has_shortcut=True and a shortcut_map: give one of them'):
            block.run_op(x)

    def test_shared_weights_of_merged_bases(self, x):
        unit = random_unit(geometry(num_bases=3, in_channels=CHANNELS, shares_weights=True, merges=True))
        with pytest.raises(ValueError, match='shares_weights=True and merges=True: merged bases have weights of their'):
            Block(Connection.BROADCAST, NUM_BASES, [unit]).run_op(x[:, :CHANNELS])

    def test_dilations_of_merged_bases(self, x):
        unit = random_unit(geometry(in_channels=CHANNELS, padding=None, dilations=(1, 2), merges=True))
        with pytest.raises(ValueError, match=r'dilations=\(1, 2\) and merges=True: merged bases read the same pixels'):
            Block(Connection.BROADCAST, NUM_BASES, [unit]).run_op(x[:, :CHANNELS])

    def test_residual_of_another_shape(self, x):
        unit = random_unit(geometry(in_channels=CHANNELS, stride=(2, 2), residual=Residual.INPUT))
        with pytest.raises(ValueError, match='residual=INPUT: .* cannot be added to'):
            Block(Connection.SEPARATE, NUM_BASES, [unit]).run_op(x)

    def test_map_smaller_than_the_kernel(self, x):
        unit = random_unit(geometry(in_channels=CHANNELS, padding=(0, 0)))
        with pytest.raises(ValueError, match='a map of 2x2 is smaller than the kernel'):
            ops.convolve(x[:, :CHANNELS, :2, :2], ops.pack_weight(unit.weight), unit.numbers)


def test_strided_parameters(kernel_set, x):
    """Kernels get only addresses, so they would read a view as if it were contiguous."""
    unit = random_unit(geometry(in_channels=CHANNELS), PARAMETERS)
    unit.parameters = {name: torch.stack([value, -value], dim=1)[:, 0] for name, value in unit.parameters.items()}
    with pytest.raises(ValueError, match=r'scale is .* strides \(2,\): give .* contiguous'):
        Block(Connection.SEPARATE, NUM_BASES, [unit]).run_op(x)
    gates = torch.tensor([[0.25, 9.0], [0.5, 9.0]])
    with pytest.raises(ValueError, match='gate is .* contiguous'):
        ops.connect(x, NUM_BASES, None, gates[:, 0])
