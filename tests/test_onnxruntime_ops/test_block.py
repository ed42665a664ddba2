"""The operator Block gives exactly the results of our op in torch."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from mmgroupnet import ops
from mmgroupnet.ops import Connection, Residual
from tests.strategies import seeds
from tests.test_onnxruntime_ops.models import assert_equal, block_node, feeds, open_session
from tests.test_ops.oracle import PARAMETERS, Block, dyadic
from tests.test_ops.test_run_block import BASIC, BLOCKS, blocks, input_of, make_block


def assert_same(library, block: Block, *inputs: torch.Tensor) -> None:
    """Compares one session for maps of all sizes with our op, with one thread and with two."""
    model = block_node(block).model()
    for threads in (1, 2):
        session = open_session(library, model, threads)
        for x in inputs:
            (out,) = session.run(None, feeds(block, x))
            assert_equal(out, block.run_op(x))


@pytest.mark.parametrize('connection', list(Connection), ids=lambda connection: connection.name.lower())
@pytest.mark.parametrize('name', BLOCKS)
def test_blocks(library, name, connection):
    for num_bases in (1, 3):
        block = make_block(
            **BLOCKS[name],
            connection=connection,
            num_bases=num_bases,
            parameters=PARAMETERS,
            exact=False,
            has_merge_scales=num_bases == 3,
        )
        assert_same(library, block, input_of(block), input_of(block, batch=1, height=40, width=33))


@given(blocks(), seeds())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_block(library, described, seed):
    torch.manual_seed(seed)
    arguments, size = described
    block = make_block(**arguments, exact=False)
    assert_same(library, block, input_of(block, *size, exact=False))


def test_merged_bases(library):
    """Layer-wise decomposition: the outputs of a unit's bases are added."""
    units = [dict(out_channels=33, num_bases=3, merges=True, relu=True, residual=Residual.INPUT)] * 2
    block = make_block(units, num_bases=1, in_channels=33, parameters=PARAMETERS)
    assert_same(library, block, input_of(block))


def test_shared_weights_of_the_first_unit(library):
    block = make_block([dict(shares_weights=True, num_bases=1, out_channels=65)], num_bases=3)
    assert_same(library, block, input_of(block))


def test_shortcut_map(library):
    units = [dict(out_channels=24, stride=(2, 2), residual=Residual.SHORTCUT), dict(out_channels=24)]
    block = make_block(units, num_bases=4, shortcut_size=(2, 96, 4, 3))
    assert_same(library, block, input_of(block))


def test_dilations_of_branches(library):
    units = [dict(padding=None, dilations=(1, 2, 4))] * 2
    block = make_block(units, num_bases=3)
    assert_same(library, block, input_of(block, height=13, width=11))


def test_a_map_whose_output_is_padding_alone(library):
    """The padding is zero, so each sum is zero and the output is the shift of the norm."""
    block = make_block([dict(kernel_size=(1, 1), padding=(1, 1), padding_value=0)])
    (out,) = open_session(library, block_node(block).model()).run(None, feeds(block, torch.empty(2, 32, 0, 4)))
    assert_equal(out, block.units[0].parameters['norm_shift'].view(1, 32, 1, 1).expand(2, 32, 2, 6))


def test_empty_batch(library):
    block = make_block(**BASIC)
    (out,) = open_session(library, block_node(block).model()).run(None, feeds(block, torch.empty(0, 66, 8, 6)))
    assert out.shape == (0, 4, 3, 130)


def test_sessions_side_by_side(library):
    """Several sessions run at the same time, each with its own threads."""
    block = make_block(**BASIC)
    x = input_of(block, height=30, width=30)
    expected = ops.run_block(x, *block.arguments)
    sessions = [open_session(library, block_node(block).model(), threads) for threads in (1, 2, 2)]

    def run(i: int) -> None:
        (out,) = sessions[i % 3].run(None, feeds(block, x))
        assert_equal(out, expected)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(24))) == [None] * 24


def test_values_around_zero(library):
    """Zeros of both signs count as +1."""
    block = make_block(**BASIC)
    x = dyadic(1, 66, 9, 9, smallest=-1, largest=1)
    assert (x == 0).any()
    assert_same(library, block, x)
