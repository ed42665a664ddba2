"""Reads the metadata of an .onnx file, without ONNX Runtime, whose errors for damaged or other files are unclear."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmgroupnet_runtime.errors import UserError
from mmgroupnet_runtime.resize import check_steps

FORMAT = 1
TASKS = ('detection', 'segmentation', 'classification', 'maps')
_KEY = 'mmgroupnet'
_EXPORT = '`mmgroupnet export`'
# Numbers of fields in onnx.proto: of ModelProto, of OperatorSetIdProto and StringStringEntryProto (the same), of
# GraphProto, and of TensorProto.
_GRAPH, _OPSET_IMPORT, _METADATA = 7, 8, 14
_NAME, _VALUE = 1, 2
_INITIALIZER = 5
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
# TensorProto.DataType
_DTYPES = {
    1: 'float32',
    2: 'uint8',
    3: 'int8',
    4: 'uint16',
    5: 'int16',
    6: 'int32',
    7: 'int64',
    9: 'bool',
    10: 'float16',
    11: 'float64',
    12: 'uint32',
    13: 'uint64',
}


class Header(NamedTuple):
    """What is known about a file before it runs.

    Attributes:
        metadata: The JSON object that the exporter wrote, see docs/onnx_file.md.
        has_binary_layers: Whether the graph has operators of the domain ``mmgroupnet``.
    """

    metadata: dict
    has_binary_layers: bool


def read_header(path: Path) -> Header:
    """Reads the metadata of a file and checks that this package supports them.

    Args:
        path: The .onnx file.

    Returns:
        Its header.

    Raises:
        UserError: If the file is missing, empty, damaged, not written by mmgroupnet, or of a newer format, or its
            weights are not those that were written.
    """
    if not path.is_file():
        raise UserError(f'{path} is a folder, an .onnx file is needed' if path.is_dir() else f'there is no file {path}')
    content = path.read_bytes()
    if not content:
        raise UserError(f'{path} is empty: copy it again')
    try:
        metadata: dict[str, str] = {}
        opsets: dict[str, object] = {}
        graphs = []
        for field, value in _fields(content):
            if field == _GRAPH:
                graphs.append(value)
            elif field == _METADATA:
                entry = dict(_fields(value))
                metadata[_text(entry.get(_NAME, b''))] = _text(entry.get(_VALUE, b''))
            elif field == _OPSET_IMPORT:
                entry = dict(_fields(value))
                opsets[_text(entry.get(_NAME, b''))] = entry.get(_VALUE, 0)
        (graph,) = graphs
        weights = _hash_weights(graph)
    except ValueError:
        raise UserError(
            f'{path} is damaged or not an .onnx file: copy it again, or write it again with {_EXPORT}'
        ) from None
    if _KEY not in metadata:
        raise UserError(
            f"{path} was not written by mmgroupnet (it has no metadata '{_KEY}'): write one with {_EXPORT}, or run "
            'this one with onnxruntime itself'
        )
    header = Header(_check(path, metadata[_KEY], opsets.get(_KEY, 0)), _KEY in opsets)
    if weights != header.metadata['weights_sha256']:
        raise UserError(
            f'{path} is damaged (its weights are not those that were written): copy it again, or write it again '
            f'with {_EXPORT}'
        )
    return header


def _hash_weights(graph: int | memoryview) -> str:
    """Returns the sha256 of the initializers of a graph, as docs/onnx_file.md defines it."""
    tensors = []
    for field, value in _fields(graph):
        if field == _INITIALIZER:
            parts: dict[int, Any] = {}
            shape = []
            for key, part in _fields(value):
                if key == _DIMS:
                    shape.append(part)
                parts[key] = part
            name, dtype = _text(parts.get(_TENSOR_NAME, b'')), _DTYPES.get(parts.get(_DATA_TYPE, 0))
            tensors.append((name, dtype, tuple(shape), _bytes(parts.get(_RAW_DATA, b''))))
    digest = hashlib.sha256()
    for *described, content in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(repr(tuple(described)).encode())
        digest.update(content)
    return digest.hexdigest()


def _check(path: Path, text: str, opset: Any) -> dict:
    """Returns the metadata of a file as an object; raises an error if this package does not support them."""
    try:
        metadata = json.loads(text)
        written = metadata['format']
        if type(written) is not int:
            raise ValueError(f'format is {written!r}')
        newer = written > FORMAT or opset > 1
        if not newer:  # A newer format may have other keys.
            task, steps, _ = (metadata[key] for key in ('task', 'resize', 'weights_sha256'))
            if task not in TASKS:
                raise ValueError(f'task {task!r}')
            # Answers are rescaled to the picture by the two sizes only, which would be wrong after a crop.
            check_steps(steps or [], crops=task in ('classification', 'maps'))
            for key in ('classes', 'palette'):
                if metadata[key] is not None and not isinstance(metadata[key], list):
                    raise ValueError(f'{key} is {metadata[key]!r}')
            for colour in metadata['palette'] or []:
                if len(colour) != 3 or not all(type(value) is int for value in colour):
                    raise ValueError(f'palette holds {colour!r}')
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"the metadata '{_KEY}' of {path} are damaged ({type(error).__name__}: {error}): write the file again with "
            f'{_EXPORT}'
        ) from None
    if newer:
        raise UserError(
            f'{path} has format {written} with operators of version {opset}, this mmgroupnet-runtime supports format '
            f'{FORMAT} with version 1: install a newer mmgroupnet-runtime (`make runtime` in a checkout), or export '
            'with an older mmgroupnet'
        )
    return metadata


def _bytes(value: int | bytes | memoryview) -> bytes | memoryview:
    if isinstance(value, int):
        raise ValueError('a number instead of bytes')
    return value


def _text(value: int | bytes | memoryview) -> str:
    return str(_bytes(value), 'utf-8')  # A UnicodeDecodeError is a ValueError, too.


def _fields(message: int | bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Iterates over the fields of a protobuf message.

    Args:
        message: Its bytes. A damaged file may have a number instead, which is refused.

    Yields:
        Number and value of each field: an integer, or the bytes of a text or a message. Fields of fixed width are left
        out; none of those that we read has one.

    Raises:
        ValueError: If the bytes are not a message.
    """
    message = memoryview(_bytes(message))
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f'wire type {kind}')
        length, position = _varint(message, position) if kind == 2 else ({1: 8, 5: 4}[kind], position)
        end = position + length
        if end > len(message):
            raise ValueError('the file ends within a field')
        if kind == 2:
            yield key >> 3, message[position:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns a protobuf integer, seven bits per byte with the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError('the file ends within a number')
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError('a number of more than 64 bits')
