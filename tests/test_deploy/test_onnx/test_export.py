"""The exported file: operators, bits, shared weights, metadata, and how it is written."""

import hashlib
import json
import math
from collections import Counter
from importlib import import_module

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxscript import ir
from torch import nn
from torch.onnx import OnnxExporterError

from mmgroupnet.deploy import pack
from mmgroupnet.deploy.onnx import export
from mmgroupnet.deploy.onnx import graph as graph_module
from mmgroupnet.deploy.onnx.graph import Graph, trace
from mmgroupnet.deploy.onnx.norms import ChannelAffine
from mmgroupnet.deploy.onnx.operators import registered_schemas
from mmgroupnet.errors import UserError
from mmgroupnet.layers.packed import PackedUnit
from mmgroupnet.ops import UnitGeometry
from mmgroupnet.version import __version__
from tests.onnx_files import CLASSES, FCOS, RESIZE, binary_fcos, detector, shake_norms


def initializers(path) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def test_inputs_and_outputs(written):
    graph = onnx.load(written[2]).graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == dict(
        image=['batch', 'image_1', 'image_2', 3], dets=['batch', 'dets_1', 5], labels=['batch', 'labels_1']
    )


def test_metadata(written):
    _, exported, path = written
    model = onnx.load(path)
    assert {each.key for each in model.metadata_props} == {'mmgroupnet'}
    metadata = json.loads(model.metadata_props[0].value)
    assert metadata == exported.metadata
    digest = hashlib.sha256()
    for name, value in sorted(initializers(path).items()):
        digest.update(repr((name, str(value.dtype), value.shape)).encode() + value.tobytes())
    assert metadata == dict(
        format=1,
        version=__version__,
        task='detection',
        classes=['a', 'b', 'c'],
        palette=[[1, 2, 3]] * CLASSES,
        resize=RESIZE,
        weights_sha256=digest.hexdigest(),
    )


def test_opsets_and_schemas(written):
    model = onnx.load(written[2])
    assert {each.domain: each.version for each in model.opset_import} == {'': 18, 'mmgroupnet': 1}
    with registered_schemas():
        onnx.checker.check_model(model)
    # The registry is global to the process; the exporter must not leave entries in it.
    assert not onnx.defs.has('Block', domain='mmgroupnet')


def test_one_bit_for_each_weight_and_shared_ones_once(written):
    model, exported, path = written
    bits = {unit.bits.data_ptr(): unit for unit in model.modules() if isinstance(unit, PackedUnit)}
    stored = [value for value in initializers(path).values() if value.dtype == np.uint8]
    expected = [unit.geometry.weight_rows * math.ceil(unit.geometry.row_bits / 8) for unit in bits.values()]
    assert sorted(value.nbytes for value in stored) == sorted(expected)
    assert exported.num_packed == len(expected)


def test_no_initializer_is_there_twice(written):
    contents = Counter((str(value.dtype), value.shape, value.tobytes()) for value in initializers(written[2]).values())
    assert set(contents.values()) == {1}


def test_blocks_say_what_they_are_made_of(written):
    blocks = [node for node in onnx.load(written[2]).graph.node if node.op_type == 'Block']
    names = initializers(written[2])
    for block in blocks:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in block.attribute}
        optional = [attributes[f'has_{name}'] for name in ('merge_scales', 'gate', 'shortcut_map')]
        parameters = block.input[1 + sum(optional) :]
        places = list(attributes['places'])
        assert places == sorted(set(places)) and len(places) == len(parameters)
        units = UnitGeometry.decode(tuple(attributes['geometry']))
        for place, name in zip(places, parameters, strict=True):
            assert place // 7 < len(units)
            assert names[name].dtype == (np.uint8 if place % 7 == 0 else np.float32)
    # Two towers with two levels each.
    assert len(blocks) >= 4


def test_towers_start_channels_last(written):
    """Input norms need no transposes: each level is transposed once for both towers, not for each of their norms."""
    graph = onnx.load(written[2]).graph
    readers = Counter(name for node in graph.node for name in node.input)
    producers = {name: node for node in graph.node for name in node.output}
    blocks = [node for node in graph.node if node.op_type == 'Block']
    norms = [producers[node.input[0]] for node in blocks if producers[node.input[0]].op_type == 'Add']
    assert len(norms) == 4
    for norm in norms:
        assert producers[norm.input[0]].op_type == 'Mul' and readers[norm.output[0]] == 1
    transposes = [node for node in graph.node if node.op_type == 'Transpose']
    assert transposes and not any(producers.get(node.input[0]) in transposes for node in transposes)


def test_nothing_of_this_machine_is_in_the_file(written):
    content = written[2].read_bytes()
    assert b'site-packages' not in content and b'stack_trace' not in content
    assert not list(written[2].parent.glob('*.partial'))


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / 'model.onnx').write_text('old')
    module = import_module('mmgroupnet.deploy.onnx.export')
    monkeypatch.setattr(module, 'check', lambda *_: 1 / 0)
    monkeypatch.setattr(module, 'trace', lambda _: ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
    with pytest.raises(ZeroDivisionError):
        export(detector(FCOS), tmp_path / 'model.onnx')
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [('model.onnx', 'old')]


def test_the_model_is_left_as_it_is():
    model = pack(binary_fcos())
    before = [(name, type(module)) for name, module in model.named_modules()]
    Graph(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_input_norms_as_products_and_sums():
    norm = nn.BatchNorm2d(4)
    shake_norms(norm)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(ChannelAffine(norm.eval())(x), norm(x))


def test_a_picture_of_other_than_three_channels_is_refused():
    model = detector(FCOS)
    model.backbone = nn.Sequential(nn.Conv2d(1, 8, 3), model.backbone)
    with pytest.raises(UserError, match='that takes pictures of three channels .*to have 1 channels, but got 3'):
        trace(Graph(model))


@pytest.mark.parametrize('is_fault', [True, False])
def test_faults_of_our_own_are_no_refusals_of_the_exporter(monkeypatch, is_fault):
    """A fault in this package keeps its traceback; a refusal of torch's exporter becomes one sentence for the user."""

    def refuse(graph):
        raise OnnxExporterError('no translation of aten::fold')

    def stumble(graph):
        try:
            ChannelAffine(None)  # raises in this package
        except Exception as error:
            raise OnnxExporterError('failed') from error

    monkeypatch.setattr(graph_module, '_export', stumble if is_fault else refuse)
    graph = Graph(detector(FCOS))
    if is_fault:
        with pytest.raises(OnnxExporterError, match='failed'):
            trace(graph)
    else:
        with pytest.raises(UserError, match=r"torch's exporter cannot trace it \(OnnxExporterError: no translation"):
            trace(graph)
    monkeypatch.setattr(graph_module, '_export', lambda graph: (None, *()))
    with pytest.raises(ValueError, match='not enough values to unpack'):
        trace(graph)
