"""Malformed nodes and inputs cause an error in ONNX Runtime with a clear message."""

import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mmgroupnet.ops import Connection, Residual
from tests.test_onnxruntime_ops.models import Node, block_node, connect_node, feeds, open_session
from tests.test_ops.test_run_block import make_block

# Positions of the numbers in the geometry of a unit with two branches.
NUM_BASES, IN_CHANNELS, OUT_CHANNELS, GROUPS, KERNEL, STRIDE, PADDING, PADDING_VALUE = 0, 1, 2, 3, 4, 6, 8, 10
DILATIONS, SHARES, MERGES, RELU, RESIDUAL, UNIT = 11, 13, 14, 15, 16, 17


def node() -> Node:
    """A block of two units with a gate and scales; the input of each unit is added to its output."""
    units = [dict(relu=True, residual=Residual.INPUT)] * 2
    return block_node(make_block(units, Connection.GATED, has_merge_scales=True))


def refused(library, node: Node, sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)):
        open_session(library, node.model())


def attribute(**values: object) -> Callable[[Node], None]:
    return lambda node: node.attributes.update(values)


def number(place: int, value: int) -> Callable[[Node], None]:
    """Changes one number of the geometry."""

    def change(node: Node) -> None:
        node.attributes['geometry'][place] = value

    return change


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Node], None]:
    def apply(node: Node) -> None:
        node.initializers[name] = change(node.initializers[name])

    return apply


def without(name: str) -> Callable[[Node], None]:
    """Removes a parameter and its place."""

    def apply(node: Node) -> None:
        del node.initializers[name]
        node.inputs.remove(name)
        node.attributes['places'].remove(int(name.removeprefix('parameter_')))

    return apply


CASES = [
    (attribute(connection=4), 'connection=4: give 0 to 3'),
    (attribute(connection=-1), 'connection=-1: give 0 to 3'),
    (attribute(connection=None), 'attribute connection: it is missing or not an int'),
    (attribute(connection=3.0), 'attribute connection: it is missing or not an int'),
    (attribute(num_bases=0), 'num_bases=0: give 1 to 1024'),
    (attribute(num_bases=1025), 'num_bases=1025: give 1 to 1024'),
    (attribute(num_bases=2**63 - 1), 'num_bases=9223372036854775807: give 1 to 1024'),
    (attribute(num_bases=3), 'geometry of unit 0: it reads 2 * 16 channels and gets 3 * 16'),
    (attribute(has_gate=2), 'has_gate=2: give 0 to 1'),
    (attribute(has_gate=0), 'has_gate=0 for connection=3: a gated connection (3) has a gate, others have none'),
    (attribute(connection=0), 'has_gate=1 for connection=0: a gated connection (3) has a gate, others have none'),
    (attribute(has_merge_scales=None), 'attribute has_merge_scales: it is missing or not an int'),
    (attribute(has_merge_scales=0), 'the node has 9 inputs, but its attributes need 8'),
    (attribute(has_shortcut_map=1), 'the node has 9 inputs, but its attributes need 10'),
    (attribute(has_shortcut=1, has_shortcut_map=1), 'has_shortcut=1 and has_shortcut_map=1: give one of them'),
    (attribute(geometry=None), 'attribute geometry: it is missing or not a list of ints'),
    (attribute(geometry=5), 'geometry of 0 units for has_shortcut=0: give 1 or more'),
    (attribute(places=None), 'attribute places: it is missing or not a list of ints'),
    (attribute(places=[0, 3, 4, 7, 10, 14]), 'places[5]=14: give numbers from 0 to 13, in ascending order'),
    (attribute(places=[0, 4, 3, 7, 10, 11]), 'places[2]=3: give numbers from 0 to 13, in ascending order'),
    (attribute(places=[0, 3, 3, 7, 10, 11]), 'places[2]=3: give numbers from 0 to 13, in ascending order'),
    (attribute(places=[-1, 3, 4, 7, 10, 11]), 'places[0]=-1: give numbers from 0 to 13, in ascending order'),
    (attribute(places=[0, 3, 4, 7, 10]), 'the node has 9 inputs, but its attributes need 8'),
    (attribute(places=[0, 3, 4, 8, 10, 11]), 'input 6, scale of unit 1, is uint8 (32, 18): give float32 (32)'),
    (number(NUM_BASES, 0), 'geometry[0]=0, num_bases of unit 0: give 1 to 1024'),
    (number(NUM_BASES, 3), 'geometry[13]=0, dilation of unit 0: give 1 to 4096'),
    (number(IN_CHANNELS, 0), 'geometry[1]=0, in_channels of unit 0: give 1 to 16777216'),
    (number(IN_CHANNELS, 2**40), 'geometry[1]=1099511627776, in_channels of unit 0: give 1 to 16777216'),
    (number(IN_CHANNELS, 2**24), 'num_bases=2 times in_channels=16777216: give no more than 16777216 channels'),
    (number(OUT_CHANNELS, -1), 'geometry[2]=-1, out_channels of unit 0: give 1 to 16777216'),
    (number(OUT_CHANNELS, 8), 'geometry of unit 0: residual=1 is a map of 2 * 16 channels'),
    (number(UNIT + IN_CHANNELS, 8), 'geometry of unit 1: it reads 2 * 8 channels and gets 2 * 16'),
    (number(GROUPS, 0), 'geometry[3]=0, groups of unit 0: give 1 to 16777216'),
    (number(GROUPS, 3), 'geometry of unit 0: in_channels=16 is not a multiple of groups=3'),
    (number(KERNEL, 0), 'geometry[4]=0, kernel height of unit 0: give 1 to 4096'),
    (number(KERNEL + 1, 4097), 'geometry[5]=4097, kernel width of unit 0: give 1 to 4096'),
    (number(STRIDE, 0), 'geometry[6]=0, stride height of unit 0: give 1 to 4096'),
    (number(STRIDE + 1, -3), 'geometry[7]=-3, stride width of unit 0: give 1 to 4096'),
    (number(PADDING, -2), 'geometry[8]=-2, padding height of unit 0: give -1 to 4096'),
    (number(PADDING, -1), 'geometry of unit 0: padding=(-1, 1): give two numbers from 0 on, or (-1, -1)'),
    (number(PADDING_VALUE, 2), 'geometry[10]=2, padding_value of unit 0: give -1 to 1'),
    (number(DILATIONS + 1, 0), 'geometry[12]=0, dilation of unit 0: give 1 to 4096'),
    (number(DILATIONS + 1, 2), 'its dilations differ: padding=(1, 1) gives maps of different size, give (-1, -1)'),
    (number(DILATIONS, 2049), 'dilation=2049 of a kernel of 3 reaches over 4098 pixels, give at most 4096'),
    (number(SHARES, 2), 'geometry[13]=2, shares_weights of unit 0: give 0 to 1'),
    (number(UNIT + SHARES, 1), 'shares_weights=1: only the shortcut and the first unit can share their weights'),
    (number(MERGES, -1), 'geometry[14]=-1, merges of unit 0: give 0 to 1'),
    (number(MERGES, 1), 'geometry of unit 0: it reads 1 * 16 channels and gets 2 * 16'),
    (number(RELU, 7), 'geometry[15]=7, relu of unit 0: give 0 to 1'),
    (number(UNIT + RESIDUAL, 3), 'geometry[33]=3, residual of unit 1: give 0 to 2'),
    (without('parameter_7'), 'places: bits of unit 1 are missing'),
    (without('parameter_4'), 'places: norm_scale and norm_shift of unit 0: give both or neither'),
    (tensor('gate', lambda gate: gate[:1]), 'input 2, gate, is float32 (1): give float32 (2)'),
    (tensor('gate', lambda gate: gate.reshape(2, 1)), 'input 2, gate, is float32 (2, 1): give float32 (2)'),
    (tensor('merge_scales', lambda scales: scales.astype(np.float64)), 'merge_scales, is of element type 11 (2)'),
    (tensor('parameter_0', lambda bits: bits[:-1]), 'input 3, bits of unit 0, is uint8 (31, 18): give uint8 (32, 18)'),
    (tensor('parameter_0', lambda bits: bits[:, :-1]), 'is uint8 (32, 17): give uint8 (32, 18)'),
    (tensor('parameter_0', lambda bits: bits.astype(np.int8)), 'is of element type 3 (32, 18): give uint8 (32, 18)'),
    (tensor('parameter_10', lambda scale: scale[:16]), 'norm_scale of unit 1, is float32 (16): give float32 (32)'),
    (tensor('parameter_11', lambda shift: shift[:0]), 'norm_shift of unit 1, is float32 (0): give float32 (32)'),
]


@pytest.mark.parametrize(('change', 'sentence'), CASES, ids=[sentence for _, sentence in CASES])
def test_a_malformed_block(library, change, sentence):
    changed = node()
    change(changed)
    refused(library, changed, sentence)


def test_the_sentence_names_the_node(library):
    changed = node()
    changed.attributes['num_bases'] = 0
    refused(library, changed, "mmgroupnet::Block 'layer1/block': num_bases=0")


@pytest.mark.parametrize(
    ('length', 'sentence'),
    [
        (1, 'geometry: its 1 numbers end at the in_channels of unit 0: give the numbers of whole units'),
        (11, 'geometry: its 11 numbers end at the dilation of unit 0'),
        (12, 'geometry: its 12 numbers end at the dilation of unit 0'),
        (16, 'geometry: its 16 numbers end at the residual of unit 0'),
        (18, 'geometry: its 18 numbers end at the in_channels of unit 1'),
        (33, 'geometry: its 33 numbers end at the residual of unit 1'),
    ],
)
def test_a_geometry_that_ends_too_early(library, length, sentence):
    changed = node()
    changed.attributes['geometry'] = changed.attributes['geometry'][:length]
    refused(library, changed, sentence)


def test_a_shortcut_without_units_behind_it(library):
    changed = block_node(make_block([dict()]))
    changed.attributes['has_shortcut'] = 1
    refused(library, changed, 'geometry of 1 units for has_shortcut=1: give 2 or more')


def test_shared_and_merged(library):
    changed = block_node(make_block([dict(num_bases=3, merges=True)], num_bases=1))
    changed.attributes['geometry'][14] = 1
    refused(library, changed, 'shares_weights=1 and merges=1: merged bases have weights of their own')


def test_merged_bases_of_different_dilations(library):
    block = make_block([dict(num_bases=2, merges=True, padding=None, dilations=(1, 2))], num_bases=1)
    refused(library, block_node(block), 'merges=1: merged bases read the same pixels, give them one dilation')


def test_too_many_products(library):
    changed = node()
    changed.attributes['geometry'][KERNEL : KERNEL + 2] = [4096, 4096]
    refused(library, changed, 'geometry of unit 0: 268435456 products in one sum, give fewer than 2**24')


def test_too_many_channels_by_shared_weights(library):
    """A unit with shared weights has one branch itself, but computes all branches of the block."""
    changed = block_node(make_block([dict(shares_weights=True, num_bases=1, out_channels=2**15)], num_bases=1))
    changed.attributes['num_bases'] = 1024
    refused(library, changed, 'maps of 1024 * 32768 channels: give no more than 16777216 channels')


def test_even_kernels_with_dilations_that_differ(library):
    """With the first dilation a map would lose one row, with the second none."""
    changed = block_node(make_block([dict(kernel_size=(2, 3), padding=None)]))
    changed.attributes['geometry'][DILATIONS + 1] = 2
    refused(library, changed, 'padding=(-1, -1) gives maps of different size, give kernels of odd size')


@pytest.mark.parametrize('name', ['gate', 'parameter_0', 'parameter_3'])
def test_a_parameter_that_is_computed(library, name):
    """The parameter is an input of the graph, not an initializer."""
    changed = node()
    changed.types[name] = helper.np_dtype_to_tensor_dtype(changed.initializers.pop(name).dtype)
    refused(library, changed, 'it must be an initializer')


def test_an_initializer_that_a_caller_may_replace(library):
    model = node().model()
    model.graph.input.append(helper.make_tensor_value_info('gate', TensorProto.FLOAT, [2]))
    with pytest.raises(Exception, match='input 2, gate: it must be an initializer'):
        open_session(library, model)


def test_input_of_another_type(library):
    changed = node()
    changed.types['x'] = TensorProto.DOUBLE
    refused(library, changed, 'input 0, x, is of element type 11: give float32')
    changed = block_node(make_block([dict()], shortcut_size=(1, 32, 4, 4)))
    changed.types['shortcut_map'] = TensorProto.UINT8
    refused(library, changed, 'input 1, shortcut_map, is uint8: give float32')


def test_no_inputs(library):
    changed = node()
    changed.inputs = []
    changed.initializers = {}
    refused(library, changed, 'input size 0 not in range [min=1')


@pytest.mark.parametrize('index', [0, 3])
def test_a_missing_input(library, index):
    """An empty name means that an input is left out; ONNX Runtime itself refuses this."""
    changed = node()
    changed.inputs[index] = ''
    refused(library, changed, 'is absent, but not optional')


@pytest.mark.parametrize(
    'shape', [(32,), (1, 8, 8), (1, 8, 8, 31), (1, 8, 8, 16), (1, 8, 8, 0), (1, 1, 8, 8, 32)], ids=str
)
def test_x_of_another_shape(library, shape):
    session = open_session(library, node().model())
    sentence = 'give (N, H, W, 2 * 16)' if len(shape) == 4 else 'give (N, H, W, C)'
    with pytest.raises(Exception, match=re.escape(sentence)) as error:
        session.run(None, {'x': np.zeros(shape, np.float32)})
    assert f'x of shape ({", ".join(map(str, shape))})' in str(error.value)


def test_a_map_that_is_smaller_than_the_kernel(library):
    session = open_session(library, block_node(make_block([dict(kernel_size=(5, 3), padding=(0, 1))])).model())
    assert session.run(None, {'x': np.zeros((1, 5, 1, 32), np.float32)})[0].shape == (1, 1, 1, 32)
    sentence = 'a map of 4x1 pixels is smaller than the kernel: kernel_size=(5, 3), dilation=1, padding=(0, 1)'
    with pytest.raises(Exception, match=re.escape(sentence)):
        session.run(None, {'x': np.zeros((1, 4, 1, 32), np.float32)})


def test_a_residual_of_another_size(library):
    session = open_session(library, block_node(make_block([dict(padding=(0, 0), residual=Residual.INPUT)])).model())
    with pytest.raises(Exception, match=re.escape('cannot be added to one of 2 * 16 channels and 2x3 pixels')):
        session.run(None, {'x': np.zeros((1, 4, 5, 32), np.float32)})


@pytest.mark.parametrize('shape', [(2, 4, 3, 32), (1, 4, 3, 31), (1, 4, 3, 64), (1, 3, 4, 32), (4, 3, 32)], ids=str)
def test_shortcut_map_of_another_shape(library, shape):
    block = make_block([dict(residual=Residual.SHORTCUT)], shortcut_size=(1, 32, 4, 3))
    given = feeds(block, torch.zeros(1, 32, 4, 3))
    session = open_session(library, block_node(block).model())
    assert session.run(None, given)[0].shape == (1, 4, 3, 32)
    with pytest.raises(Exception, match=r'shortcut_map of shape|cannot be added'):
        session.run(None, given | {'shortcut_map': np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (attribute(num_bases=0), "mmgroupnet::Connect 'layer1/block': num_bases=0: give 1 to 1024"),
        (attribute(has_gate=None), 'attribute has_gate: it is missing or not an int'),
        (attribute(has_gate=0), 'the node has 3 inputs, but its attributes need 2'),
        (tensor('gate', lambda gate: gate[:2]), 'input 2, gate, is float32 (2): give float32 (3)'),
        (tensor('merge_scales', lambda scales: scales.astype(np.float16)), 'is of element type 10 (3)'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',  # a function's address differs between processes
)
def test_a_malformed_connect(library, change, sentence):
    changed = connect_node(3, torch.rand(3), torch.rand(3))
    change(changed)
    refused(library, changed, sentence)


@pytest.mark.parametrize('shape', [(1, 2, 2, 4), (1, 2, 2, 0), (2, 2, 6)], ids=str)
def test_connect_of_another_shape(library, shape):
    session = open_session(library, connect_node(3).model())
    with pytest.raises(Exception, match=re.escape(f'x of shape ({", ".join(map(str, shape))}): give (N, H, W, ')):
        session.run(None, {'x': np.zeros(shape, np.float32)})


def test_an_unknown_operator(library):
    changed = node()
    changed.op = 'Blocks'
    refused(library, changed, 'Blocks')


@pytest.mark.parametrize('value', ['0', '257', '-1', '2 ', 'two', '', '99999999999999999999'])
def test_a_malformed_number_of_threads(library, value):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry('mmgroupnet.threads', value)
    with pytest.raises(Exception, match=f'mmgroupnet.threads={value}: give 1 to 256'):
        options.register_custom_ops_library(str(library))


def test_unknown_kernels(library):
    program = 'import sys, onnxruntime; onnxruntime.SessionOptions().register_custom_ops_library(sys.argv[1])'
    done = subprocess.run(
        [sys.executable, '-c', program, library], env={'MMGROUPNET_KERNEL': 'sse9'}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'MMGROUPNET_KERNEL=sse9: this machine has the kernels portable' in done.stderr


def test_constants_from_nodes_serve_as_initializers(library):
    """ONNX Runtime converts them to initializers."""
    made = node()
    gate = made.initializers.pop('gate')
    model = made.model()
    model.graph.input.remove(next(value for value in model.graph.input if value.name == 'gate'))
    constant = helper.make_node('Constant', [], ['gate'], value=numpy_helper.from_array(gate))
    model.graph.node.insert(0, constant)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 32), np.float32)
    made.initializers['gate'] = gate
    assert (open_session(library, model).run(None, {'x': x})[0] == made.run(library, {'x': x})).all()
