"""Graphs of one operator, and sessions that run them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from tests.test_ops.oracle import Block

DOMAIN = 'mmgroupnet'
NAME = 'layer1/block'


@dataclass
class Node:
    """The parts of a node, which can be changed before a model is made from it.

    Args:
        op: ``Block`` or ``Connect``.
        attributes: Its attributes; those that are None are left out.
        inputs: Names of its inputs.
        initializers: Arrays of the inputs that are initializers.
        types: Element types of the other inputs. Default: float32.
    """

    op: str
    attributes: dict[str, object]
    inputs: list[str]
    initializers: dict[str, np.ndarray]
    types: dict[str, int] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        attributes = {name: value for name, value in self.attributes.items() if value is not None}
        node = helper.make_node(self.op, self.inputs, ['y'], name=NAME, domain=DOMAIN, **attributes)
        given = [name for name in dict.fromkeys(self.inputs) if name and name not in self.initializers]
        graph = helper.make_graph(
            [node],
            'graph',
            [helper.make_tensor_value_info(name, self.types.get(name, TensorProto.FLOAT), None) for name in given],
            [helper.make_tensor_value_info('y', TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        opsets = [helper.make_opsetid('', 18), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def run(self, library: Path, inputs: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
        (y,) = open_session(library, self.model(), threads).run(None, inputs)
        return y


def open_session(library: Path, model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # logs no errors, since they are also raised
    options.add_session_config_entry('mmgroupnet.threads', str(threads))
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def block_node(block: Block) -> Node:
    connection, num_bases, merge_scales, gate, geometry, parameters, places, has_shortcut, shortcut = block.arguments
    initializers = {'merge_scales': merge_scales, 'gate': gate}
    initializers |= {f'parameter_{place}': tensor for place, tensor in zip(places, parameters, strict=True)}
    initializers = {name: tensor.numpy() for name, tensor in initializers.items() if tensor is not None}
    inputs = ['x', *initializers]
    if shortcut is not None:
        inputs.insert(len(inputs) - len(places), 'shortcut_map')
    attributes = dict(
        connection=connection,
        num_bases=num_bases,
        geometry=geometry,
        places=places,
        has_merge_scales=int(merge_scales is not None),
        has_gate=int(gate is not None),
        has_shortcut_map=int(shortcut is not None),
        has_shortcut=int(has_shortcut),
    )
    return Node('Block', attributes, inputs, initializers)


def connect_node(num_bases: int, merge_scales: Tensor | None = None, gate: Tensor | None = None) -> Node:
    initializers = {'merge_scales': merge_scales, 'gate': gate}
    initializers = {name: tensor.numpy() for name, tensor in initializers.items() if tensor is not None}
    attributes = dict(
        num_bases=num_bases, has_merge_scales=int(merge_scales is not None), has_gate=int(gate is not None)
    )
    return Node('Connect', attributes, ['x', *initializers], initializers)


def nhwc(x: Tensor) -> np.ndarray:
    """A map in the layout of the graphs, channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def feeds(block: Block, x: Tensor) -> dict[str, np.ndarray]:
    given = {'x': nhwc(x)}
    if block.shortcut_map is not None:
        given['shortcut_map'] = nhwc(block.shortcut_map)
    return given


def assert_equal(out: np.ndarray, expected: Tensor) -> None:
    """Checks that an output equals the expected map exactly."""
    assert torch.equal(torch.from_numpy(out).permute(0, 3, 1, 2), expected)
