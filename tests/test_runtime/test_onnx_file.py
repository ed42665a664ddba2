import hashlib
import json
import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmgroupnet_runtime import UserError
from mmgroupnet_runtime.onnx_file import read_header
from onnx import numpy_helper

from tests.onnx_models import CLASSIFIER, hash_weights, onnx_model, write_onnx


def test_metadata_are_read(tmp_path):
    steps = [dict(type='resize_edge', edge='short', length=9), dict(type='center_crop', width=8, height=8)]
    path = write_onnx(tmp_path / 'a.onnx', CLASSIFIER, 'classification', classes=['Ä', 'b', 'c'], resize=steps)
    header = read_header(path)
    assert header.metadata == dict(
        format=1,
        version='0.1.0',
        task='classification',
        classes=['Ä', 'b', 'c'],
        palette=None,
        resize=steps,
        weights_sha256=hashlib.sha256().hexdigest(),
    )
    assert not header.has_binary_layers


def test_the_domain_tells_whether_the_library_is_needed(tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', CLASSIFIER, 'classification', opsets='"" : 18, "mmgroupnet" : 1')
    assert read_header(path).has_binary_layers


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=re.escape(f'there is no file {tmp_path / "a.onnx"}')):
        read_header(tmp_path / 'a.onnx')
    with pytest.raises(UserError, match='is a folder, an .onnx file is needed'):
        read_header(tmp_path)


def test_an_empty_file(tmp_path):
    path = tmp_path / 'a.onnx'
    path.touch()
    with pytest.raises(UserError, match=r'a.onnx is empty: copy it again'):
        read_header(path)


def test_every_beginning_of_a_file_is_refused(tmp_path):
    path = write_onnx(tmp_path / 'a.onnx', CLASSIFIER, 'classification')
    content = path.read_bytes()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match='is damaged or not an .onnx file: copy it|was not written by mmgroupnet'):
            read_header(path)


@pytest.mark.parametrize(
    'content',
    [
        b'PK\x03\x04' + bytes(40),
        b'\x89PNG\r\n\x1a\n',
        b'version https://git-lfs',
        b'\xff' * 30,
    ],
)
def test_other_files(tmp_path, content):
    path = tmp_path / 'a.onnx'
    path.write_bytes(content)
    with pytest.raises(UserError, match='is damaged or not an .onnx file: copy it again'):
        read_header(path)


@given(st.integers(0), st.integers(0, 255))
@settings(max_examples=500, deadline=None)
def test_a_changed_byte_ends_in_a_header_or_a_sentence(tmp_path_factory, place, byte):
    content = bytearray(weighted_model(a=np.ones((2, 3), np.float32), b=np.arange(3)).SerializeToString())
    content[place % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / 'changed.onnx'
    path.write_bytes(content)
    try:
        assert read_header(path).metadata['task'] == 'classification'
    except UserError as error:
        assert str(path) in str(error)


def weighted_model(**arrays):
    model = onnx_model(CLASSIFIER, 'classification')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    metadata = json.loads(model.metadata_props[0].value) | dict(weights_sha256=hash_weights(model))
    onnx.helper.set_model_props(model, {'mmgroupnet': json.dumps(metadata)})
    return model


def test_weights_are_compared_with_their_sha256(tmp_path):
    dtypes = (
        'float32',
        'uint8',
        'int8',
        'uint16',
        'int16',
        'int32',
        'int64',
        'bool',
        'float16',
        'float64',
        'uint32',
        'uint64',
    )
    arrays = {f'z_{dtype}': np.arange(6).reshape(1, 2, 3).astype(dtype) for dtype in dtypes}
    arrays |= dict(a=np.float32(7), empty=np.zeros((0, 3), np.int64))
    model = weighted_model(**arrays)
    path = tmp_path / 'a.onnx'
    onnx.save(model, path)
    assert read_header(path).metadata['weights_sha256'] == hash_weights(model)
    for tensor in model.graph.initializer:
        if tensor.raw_data:
            before = tensor.raw_data
            tensor.raw_data = bytes([before[0] ^ 1]) + before[1:]
            onnx.save(model, path)
            with pytest.raises(UserError, match=r'\(its weights are not those that were written\): copy it again'):
                read_header(path)
            tensor.raw_data = before


@pytest.mark.parametrize(
    'change',
    [
        dict(name='b'),
        dict(dims=[3, 2]),
        dict(data_type=onnx.TensorProto.INT32),
        dict(data_type=99),
    ],
)
def test_weights_with_another_name_shape_or_type(tmp_path, change):
    model = weighted_model(a=np.ones((2, 3), np.float32))
    for field, value in change.items():
        model.graph.initializer[0].ClearField(field)
        model.graph.initializer[0].MergeFrom(onnx.TensorProto(**{field: value}))
    (tmp_path / 'a.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match='its weights are not those that were written'):
        read_header(tmp_path / 'a.onnx')


def test_a_foreign_file(tmp_path):
    model = onnx_model(CLASSIFIER, 'classification')
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'a.onnx')
    with pytest.raises(UserError, match=r"a.onnx was not written by mmgroupnet \(it has no metadata 'mmgroupnet'\)"):
        read_header(tmp_path / 'a.onnx')


@pytest.mark.parametrize(
    ('options', 'found'),
    [
        (dict(format=2, task=..., resize=...), 'format 2 with operators of version 0'),
        (dict(opsets='"" : 18, "mmgroupnet" : 2'), 'format 1 with operators of version 2'),
    ],
)
def test_a_newer_file(tmp_path, options, found):
    path = write_onnx(tmp_path / 'a.onnx', CLASSIFIER, **dict(task='classification') | options)
    advice = 'install a newer mmgroupnet-runtime'
    with pytest.raises(UserError, match=f'a.onnx has {found}, this .* supports format 1 with version 1: {advice}'):
        read_header(path)


@pytest.mark.parametrize(
    ('options', 'problem'),
    [
        (dict(task='pose'), "ValueError: task 'pose'"),
        (dict(format='one'), "ValueError: format is 'one'"),
        (dict(format=float('nan')), 'ValueError: format is nan'),
        (dict(palette=[1]), 'TypeError'),
        (dict(palette=[[1, 2]]), 'ValueError: palette holds [1, 2]'),
        (dict(resize=...), "KeyError: 'resize'"),
        (dict(weights_sha256=...), "KeyError: 'weights_sha256'"),
        (dict(classes='abc'), "ValueError: classes is 'abc'"),
        (dict(resize=[dict(type='pad')]), "ValueError: resize step {'type': 'pad'}"),
        (dict(task='detection', resize=[dict(type='center_crop', width=8, height=8)]), 'ValueError: resize step'),
    ],
)
def test_damaged_metadata(tmp_path, options, problem):
    path = write_onnx(tmp_path / 'a.onnx', CLASSIFIER, **dict(task='classification') | options)
    with pytest.raises(UserError, match=rf"the metadata 'mmgroupnet' of .*a.onnx are damaged \({re.escape(problem)}"):
        read_header(path)


@pytest.mark.parametrize('text', ['', '{', '[]', '1', '[' * 100_000], ids=['empty', 'brace', 'list', 'number', 'deep'])
def test_metadata_that_are_no_object(tmp_path, text):
    model = onnx_model(CLASSIFIER, 'classification')
    onnx.helper.set_model_props(model, {'mmgroupnet': text})
    onnx.save(model, tmp_path / 'a.onnx')
    with pytest.raises(UserError, match="the metadata 'mmgroupnet' of .* are damaged"):
        read_header(tmp_path / 'a.onnx')
