"""Blocks and connections, for every set of kernels, against the oracle and the simulation."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from mmgroupnet import ops
from mmgroupnet.ops import Connection, Residual, kernels
from tests.strategies import seeds
from tests.test_ops import oracle
from tests.test_ops.oracle import PARAMETERS, Block, Unit, dyadic, geometry, random_unit

NORM = ('norm_scale', 'norm_shift')
POINTWISE = dict(kernel_size=(1, 1), padding=(0, 0))
SHORTCUT_UNIT = dict(POINTWISE, shares_weights=True, num_bases=1)


def make_block(
    units: list[dict],
    connection: Connection = Connection.SEPARATE,
    num_bases: int = 2,
    in_channels: int = 16,
    parameters: tuple[str, ...] = NORM,
    shortcut: dict | None = None,
    shortcut_size: tuple[int, ...] | None = None,
    exact: bool = True,
    has_merge_scales: bool = False,
) -> Block:
    """A block of random units; each entry of ``units`` has the changes to the default of ``geometry()``."""
    made, channels = [], in_channels
    for overrides in units:
        numbers = geometry(**dict(num_bases=num_bases, in_channels=channels) | overrides)
        made.append(random_unit(numbers, parameters, exact))
        channels = numbers.out_channels
    draw = dyadic if exact else torch.randn
    gate = torch.tensor([0.25, 0.5])[torch.randint(2, (num_bases,))] if exact else torch.rand(num_bases)
    return Block(
        connection,
        num_bases,
        made,
        draw(num_bases) if has_merge_scales else None,
        gate if connection == Connection.GATED else None,
        None
        if shortcut is None
        else random_unit(geometry(**dict(SHORTCUT_UNIT, in_channels=in_channels) | shortcut), parameters, exact),
        None if shortcut_size is None else draw(*shortcut_size),
    )


def input_of(block: Block, batch: int = 2, height: int = 7, width: int = 5, exact: bool = True) -> Tensor:
    first = block.units[0].geometry
    branches = 1 if block.connection == Connection.BROADCAST else block.num_bases
    return (dyadic if exact else torch.randn)(batch, branches * first.in_channels, height, width)


def assert_exact(block: Block, x: Tensor) -> None:
    """The op gives the floats of the oracle and the simulation, with both memory formats and one and two threads."""
    torch.set_num_threads(1)
    before = x.clone()
    expected, _ = block.run_oracle(x)
    assert torch.equal(block.run_simulation(x), expected)
    arguments = block.arguments
    for threads, memory_format in ((1, torch.contiguous_format), (2, torch.channels_last)):
        # Only the kernels are tested with several threads; in torch, threads would only cost time.
        torch.set_num_threads(threads if kernels.library() else 1)
        out = ops.run_block(x.contiguous(memory_format=memory_format), *arguments)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, expected), f'{threads} threads, {memory_format}'
    assert torch.equal(x, before)


BASIC = dict(
    units=[
        dict(out_channels=65, stride=(2, 2), relu=True, residual=Residual.SHORTCUT),
        dict(out_channels=65, relu=True, residual=Residual.INPUT),
    ],
    in_channels=33,
    shortcut=dict(out_channels=65, stride=(2, 2)),
)
IDENTITY_BASIC = dict(
    units=[
        dict(out_channels=66, relu=True, residual=Residual.SHORTCUT),
        dict(out_channels=66, relu=True, residual=Residual.INPUT),
    ],
    in_channels=66,
)
BOTTLENECK = dict(
    units=[
        dict(POINTWISE, out_channels=16, relu=True),
        dict(out_channels=16, stride=(2, 2), relu=True),
        dict(POINTWISE, out_channels=70, relu=True, residual=Residual.SHORTCUT),
    ],
    in_channels=48,
    shortcut=dict(out_channels=70, stride=(2, 2)),
)
IDENTITY_BOTTLENECK = dict(
    units=[
        dict(POINTWISE, out_channels=32, relu=True),
        dict(out_channels=32, relu=True, residual=Residual.INPUT, padding_value=0),
        dict(POINTWISE, out_channels=64, relu=True, residual=Residual.SHORTCUT),
    ],
    in_channels=64,
)
TOWER = dict(
    units=[dict(out_channels=20, groups=2, relu=True, residual=Residual.INPUT)] * 3,
    in_channels=20,
)
CHANGING_SHAPES = dict(
    units=[
        dict(out_channels=130, stride=(1, 2), kernel_size=(2, 3), padding=(1, 0)),
        dict(out_channels=3, kernel_size=(3, 1), padding=None, dilations=2, padding_value=-1, residual=Residual.NONE),
        dict(out_channels=96, groups=3, relu=True),
        dict(out_channels=96, groups=3, residual=Residual.INPUT, padding_value=0),
    ],
    in_channels=5,
)
BLOCKS = dict(
    basic=BASIC,
    identity_basic=IDENTITY_BASIC,
    bottleneck=BOTTLENECK,
    identity_bottleneck=IDENTITY_BOTTLENECK,
    tower=TOWER,
    changing_shapes=CHANGING_SHAPES,
    single=dict(units=[dict(residual=Residual.INPUT)]),
)
connections = pytest.mark.parametrize('connection', list(Connection), ids=lambda connection: connection.name.lower())


@pytest.mark.parametrize('parameters', [NORM, PARAMETERS], ids=['norms', 'all_parameters'])
@connections
@pytest.mark.parametrize('name', BLOCKS)
def test_blocks(kernel_set, name, connection, parameters):
    for num_bases in (1, 2, 4):
        block = make_block(**BLOCKS[name], connection=connection, num_bases=num_bases, parameters=parameters)
        assert_exact(block, input_of(block))


@pytest.mark.parametrize('connection', [Connection.GATED, Connection.BROADCAST], ids=['gated', 'broadcast'])
@pytest.mark.parametrize('name', BLOCKS)
def test_large_maps(kernel_set, name, connection):
    """Maps of one MiB or more are computed in bands of rows; each band needs rows of its neighbours."""
    block = make_block(**BLOCKS[name], connection=connection)
    width = 60
    row_bytes = 4 * block.run_oracle(input_of(block, batch=1, height=7, width=width))[0][0, :, 0].numel()
    assert_exact(block, input_of(block, height=min(160, 2**20 // row_bytes), width=width))


@pytest.mark.parametrize('parameter', ['scale', 'bias', 'sign_scale', 'sign_shift'])
@pytest.mark.parametrize('name', ['basic', 'tower'])
def test_each_parameter_alone(kernel_set, name, parameter):
    block = make_block(**BLOCKS[name], parameters=(parameter,))
    assert_exact(block, input_of(block))


@pytest.mark.parametrize('parameter', NORM)
def test_half_a_norm_is_refused(kernel_set, parameter):
    block = make_block(**BASIC, parameters=(parameter,))
    with pytest.raises(ValueError, match='norm_scale and norm_shift: give both or neither'):
        block.run_op(input_of(block))


@connections
@pytest.mark.parametrize('position', [0, 1, 2])
def test_shortcut_map(kernel_set, connection, position):
    """The shortcut map has the shape of the output; any unit with this shape can add it."""
    units = [dict(out_channels=24, stride=(2, 2)), dict(out_channels=24), dict(out_channels=24)]
    units[position] = units[position] | dict(residual=Residual.SHORTCUT)
    block = make_block(units, connection, 4, shortcut_size=(2, 96, 4, 3))
    assert_exact(block, input_of(block))
    block.shortcut_map = block.shortcut_map.contiguous(memory_format=torch.channels_last)
    assert_exact(block, input_of(block))


@pytest.mark.parametrize('height', [3, 5, 9])
@pytest.mark.parametrize('num_units', [1, 2])
@pytest.mark.parametrize('connection', [Connection.MERGED, Connection.GATED], ids=['merged', 'gated'])
def test_rows_that_read_only_padding(kernel_set, connection, num_units, height):
    """With such a stride and padding, a row of the output is complete before the rows above it are computed in the map
    in front, which has the same shape and may share its memory."""
    unit = dict(kernel_size=(1, 1), stride=(2, 1), padding=((height - 1) // 2, 0))
    block = make_block([unit] * num_units, connection, in_channels=64)
    assert_exact(block, input_of(block, height=height, width=600))


@pytest.mark.parametrize('connection', [Connection.MERGED, Connection.GATED], ids=['merged', 'gated'])
def test_merge_scales(kernel_set, connection):
    block = make_block(**BASIC, connection=connection, num_bases=4, has_merge_scales=True)
    assert_exact(block, input_of(block))


def test_shortcut_is_kept_until_its_last_use(kernel_set):
    """All units have the shape of the output, so each could overwrite the buffer of the shortcut."""
    residuals = [Residual.NONE, Residual.SHORTCUT, Residual.INPUT, Residual.SHORTCUT, Residual.INPUT]
    units = [dict(residual=residual, relu=True) for residual in residuals]
    for connection in Connection:
        for shortcut in (None, dict()):
            block = make_block(units, connection, shortcut=shortcut)
            assert_exact(block, input_of(block))


def test_shortcut_of_the_shape_of_the_connected_map(kernel_set):
    """The shortcut unit must not overwrite the connected map, which the first unit adds."""
    units = [dict(residual=Residual.INPUT), dict(residual=Residual.SHORTCUT)]
    for connection in (Connection.MERGED, Connection.GATED):
        block = make_block(units, connection, shortcut=dict())
        assert_exact(block, input_of(block))


@pytest.mark.parametrize('padding_value', [1, 0])
@pytest.mark.parametrize('parameters', [('scale',), PARAMETERS], ids=['scale', 'all_parameters'])
@pytest.mark.parametrize('residuals', [(Residual.NONE, Residual.INPUT), (Residual.INPUT, Residual.SHORTCUT)], ids=str)
def test_layerwise(kernel_set, residuals, parameters, padding_value):
    """The outputs of a unit's bases are added."""
    units = [
        dict(out_channels=33, num_bases=3, merges=True, relu=True, residual=residual, padding_value=padding_value)
        for residual in residuals
    ]
    block = make_block(units, num_bases=1, in_channels=33, parameters=parameters)
    assert_exact(block, input_of(block))


def test_layerwise_units_take_one_branch(kernel_set):
    block = make_block([dict(num_bases=3, merges=True)], num_bases=3)
    with pytest.raises(ValueError, match='3 branches of 16 channels for a unit that reads 1 of 16'):
        block.run_op(dyadic(2, 48, 7, 5))


def test_zero_counts_as_positive_between_units(kernel_set):
    """Sums of an even number of products are often zero, and negative scales make negative zeros of them."""
    units = [dict(in_channels=4, out_channels=70, **POINTWISE), dict(out_channels=8, **POINTWISE)]
    block = make_block(units, in_channels=4, parameters=())
    block.units[0].parameters['scale'] = torch.tensor([1.0, -1.0]).repeat(70)
    x = dyadic(1, 8, 9, 9)
    first = Block(Connection.SEPARATE, 2, block.units[:1]).run_op(x)
    assert (first == 0).any()
    assert_exact(block, x)


class TestSharedWeights:
    """Units in which all branches use the weights and parameters of one branch."""

    @connections
    @pytest.mark.parametrize('parameters', [(), NORM, PARAMETERS], ids=['bare', 'norms', 'all_parameters'])
    def test_first(self, kernel_set, connection, parameters):
        units = [dict(shares_weights=True, num_bases=1, out_channels=65, residual=Residual.NONE, padding_value=0)]
        block = make_block(units, connection, 3 if connection == Connection.SEPARATE else 2, parameters=parameters)
        assert_exact(block, input_of(block))

    def test_behind_another_it_is_refused(self, kernel_set):
        """The unit in front packs the signs with parameters for each of its own channels, so only the first unit may
        share weights."""
        units = [dict(out_channels=65), dict(out_channels=65, shares_weights=True, num_bases=1)]
        block = make_block(units, in_channels=5, parameters=PARAMETERS)
        with pytest.raises(ValueError, match='shares_weights=True: only the shortcut and the first unit'):
            block.run_op(input_of(block))


def test_branches_behind_one_map_are_refused(kernel_set):
    """Only the branches of the first unit may share one input map."""
    units = [dict(num_bases=3, merges=True), dict(num_bases=3, out_channels=40)]
    block = make_block(units, num_bases=1, parameters=PARAMETERS)
    with pytest.raises(ValueError, match='1 branches of 16 channels for a unit that reads 3 of 16'):
        block.run_op(input_of(block))


@st.composite
def blocks(draw: st.DrawFn) -> dict:
    """Arguments of ``make_block``, and the size of the input."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size, units = (height, width), []
    in_channels = channels = draw(st.sampled_from([1, 4, 16, 31, 64, 66]))
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 2])) if channels % 2 == 0 else 1
        keeps_shape = draw(st.booleans())
        kernel_size = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (3, 1)]))
        overrides = dict(
            out_channels=channels if keeps_shape else groups * draw(st.sampled_from([1, 8, 31, 32, 64, 65])),
            groups=groups,
            kernel_size=kernel_size,
            padding=draw(st.sampled_from([None, (1, 1)])) if not keeps_shape else None,
            dilations=draw(st.integers(1, 2)),
            # Not (1, 2), since oneDNN 3.12, which torch uses, is wrong for one channel and one column of output.
            stride=(1, 1) if keeps_shape else draw(st.sampled_from([(1, 1), (2, 2)])),
            padding_value=draw(st.sampled_from([1, -1, 0])),
            relu=draw(st.booleans()),
        )
        if keeps_shape and draw(st.booleans()):
            overrides['residual'] = Residual.INPUT
        numbers = geometry(in_channels=channels, **overrides)
        try:
            out_size = numbers.output_size(*size)
        except ValueError:  # smaller than the kernel
            continue
        if keeps_shape and size == (height, width) and channels == in_channels and draw(st.booleans()):
            overrides['residual'] = Residual.SHORTCUT
        size, channels = out_size, numbers.out_channels
        units.append(overrides)
    units = units or [dict()]
    groups = [('scale',), ('bias',), NORM, ('sign_scale',), ('sign_shift',)]
    return dict(
        units=units,
        connection=draw(st.sampled_from(Connection)),
        num_bases=draw(st.sampled_from([1, 2, 4])),
        in_channels=in_channels,
        parameters=tuple(parameter for group in draw(st.sets(st.sampled_from(groups))) for parameter in group),
        has_merge_scales=draw(st.booleans()),
    ), (draw(st.integers(1, 2)), height, width)


@given(blocks(), seeds())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_block(kernel_set, described, seed):
    torch.manual_seed(seed)
    arguments, size = described
    block = make_block(**arguments)
    assert_exact(block, input_of(block, *size))


class TestRandomFloats:
    @connections
    @pytest.mark.parametrize('name', BLOCKS)
    def test_close_to_the_oracle(self, kernel_set, name, connection):
        """Only blocks in which no input of a sign is close to zero: rounding could flip the sign and change whole
        sums."""
        for seed in range(100):
            torch.manual_seed(seed)
            block = make_block(**BLOCKS[name], connection=connection, num_bases=3, exact=False, parameters=PARAMETERS)
            x = input_of(block, batch=1, height=4, width=3, exact=False)
            expected, nearest = block.run_oracle(x)
            if nearest > 2e-5:
                break
        assert nearest > 2e-5
        scale = expected.abs().max()
        assert_close(block.run_op(x) / scale, expected / scale, rtol=0, atol=1e-5)

    @connections
    @pytest.mark.parametrize('name', BLOCKS)
    def test_all_kernels_give_the_same_floats(self, compiled, name, connection):
        block = make_block(
            **BLOCKS[name],
            connection=connection,
            num_bases=5,
            exact=False,
            parameters=PARAMETERS,
            has_merge_scales=name == 'basic',
        )
        x = input_of(block, exact=False)
        assert_same_bits(compiled, lambda: block.run_op(x))

    @pytest.mark.parametrize('gated', [False, True], ids=['merged', 'gated'])
    def test_all_kernels_connect_to_the_same_floats(self, compiled, gated):
        x = torch.randn(2, 5 * 67, 6, 7)
        gate = torch.rand(5) if gated else None
        for scales in (None, torch.randn(5)):
            assert_same_bits(compiled, lambda scales=scales: ops.connect(x, 5, scales, gate))


def assert_same_bits(names: list[str], run: Callable[[], Tensor]) -> None:
    """All sets of kernels give exactly the same floats, including the signs of zeros."""
    before = ops.selected_kernels()
    outs = []
    try:
        for name in names:
            ops.select_kernels(name)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                outs.append(run().view(torch.int32))
    finally:
        ops.select_kernels(before)
    assert outs[0].ne(0).any()
    for out in outs[1:]:
        assert torch.equal(out, outs[0])


class TestConnect:
    @pytest.mark.parametrize('gated', [False, True], ids=['merged', 'gated'])
    @pytest.mark.parametrize('scaled', [False, True], ids=['mean', 'scales'])
    @pytest.mark.parametrize(('num_bases', 'channels'), [(1, 16), (2, 1), (2, 65), (4, 16)])
    def test_exact(self, kernel_set, num_bases, channels, scaled, gated):
        x = dyadic(2, num_bases * channels, 5, 3)
        scales = dyadic(num_bases) if scaled else None
        gate = torch.tensor([0.25, 0.5, 0.75, 0.125])[:num_bases] if gated else None
        expected = torch.cat(oracle.connect(list(x.split(channels, dim=1)), scales, gate), dim=1)
        assert torch.equal(ops.simulation.connect(x, num_bases, scales, gate), expected)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            out = ops.connect(x.contiguous(memory_format=memory_format), num_bases, scales, gate)
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(out, expected)

    @pytest.mark.parametrize('gated', [False, True], ids=['merged', 'gated'])
    def test_random_floats(self, kernel_set, gated):
        x, scales = torch.randn(2, 3 * 20, 20, 30), torch.randn(3)
        gate = torch.rand(3) if gated else None
        expected = torch.cat(oracle.connect(list(x.split(20, dim=1)), scales, gate), dim=1)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_close(ops.connect(x, 3, scales, gate), expected, rtol=1e-5, atol=1e-5)


def test_unit_alone_equals_the_integers(kernel_set):
    """A block of one unit without parameters gives the integers of the convolution."""
    unit: Unit = random_unit(geometry(in_channels=66, out_channels=70))
    x = dyadic(1, 132, 6, 5)
    out = Block(Connection.SEPARATE, 2, [unit]).run_op(x)
    assert torch.equal(out, ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers).float())
