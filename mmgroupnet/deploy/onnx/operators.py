"""The packed ops in ONNX: schemas of the domain ``mmgroupnet``, and the translation of each op for torch's exporter.

docs/onnx_file.md describes inputs and attributes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import ir
from onnxscript import opset18 as standard
from onnxscript.values import Op, Opset

from mmgroupnet.deploy.onnx.layout import TO_NCHW, TO_NHWC

DOMAIN = 'mmgroupnet'
VERSION = 1
OPSET = 18


def _schema(name: str, input_types: list[str], numbers: Sequence[str], lists: Sequence[str] = ()) -> OpSchema:
    def attributes(names: Sequence[str], kind: OpSchema.AttrType) -> list[OpSchema.Attribute]:
        return [OpSchema.Attribute(attribute, kind, required=True) for attribute in names]

    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        # One variadic list: onnxscript repeats a required input that is followed by a variadic one.
        inputs=[
            OpSchema.FormalParameter(
                'inputs', 'T', param_option=OpSchema.FormalParameterOption.Variadic, is_homogeneous=False
            )
        ],
        outputs=[OpSchema.FormalParameter('y', 'tensor(float)')],
        type_constraints=[('T', input_types, '')],
        attributes=[*attributes(numbers, OpSchema.AttrType.INT), *attributes(lists, OpSchema.AttrType.INTS)],
    )


_SCHEMAS = (
    _schema(
        'Block',
        ['tensor(float)', 'tensor(uint8)'],
        ['connection', 'num_bases', 'has_merge_scales', 'has_gate', 'has_shortcut_map', 'has_shortcut'],
        ['geometry', 'places'],
    ),
    _schema('Connect', ['tensor(float)'], ['num_bases', 'has_merge_scales', 'has_gate']),
)


@contextmanager
def registered_schemas() -> Iterator[None]:
    """A context in which the two schemas are registered with onnx; its registry is shared by the whole process."""
    for schema in _SCHEMAS:
        onnx.defs.register_schema(schema)
    try:
        yield
    finally:
        for schema in _SCHEMAS:
            onnx.defs.deregister_schema(schema.name, VERSION, DOMAIN)


def _operator(name: str) -> Op:
    return Op(Opset(DOMAIN, VERSION), name, next(schema for schema in _SCHEMAS if schema.name == name))


def _run_block(
    x: ir.Value,
    connection: int,
    num_bases: int,
    merge_scales: ir.Value | None,
    gate: ir.Value | None,
    geometry: Sequence[int],
    parameters: Sequence[ir.Value],
    places: Sequence[int],
    has_shortcut: bool,
    shortcut_map: ir.Value | None,
) -> ir.Value:
    """``Block`` for ``torch.ops.mmgroupnet.run_block``; its transposes cancel with those of neighbours."""
    if shortcut_map is not None:
        shortcut_map = standard.Transpose(shortcut_map, perm=TO_NHWC)
    optional = [value for value in (merge_scales, gate, shortcut_map) if value is not None]
    y = _operator('Block')(
        standard.Transpose(x, perm=TO_NHWC),
        *optional,
        *parameters,
        connection=connection,
        num_bases=num_bases,
        geometry=list(geometry),
        places=list(places),
        has_merge_scales=int(merge_scales is not None),
        has_gate=int(gate is not None),
        has_shortcut_map=int(shortcut_map is not None),
        has_shortcut=int(has_shortcut),
    )
    return standard.Transpose(y, perm=TO_NCHW)


def _connect(x: ir.Value, num_bases: int, merge_scales: ir.Value | None, gate: ir.Value | None) -> ir.Value:
    """``Connect`` for ``torch.ops.mmgroupnet.connect``."""
    y = _operator('Connect')(
        standard.Transpose(x, perm=TO_NHWC),
        *[value for value in (merge_scales, gate) if value is not None],
        num_bases=num_bases,
        has_merge_scales=int(merge_scales is not None),
        has_gate=int(gate is not None),
    )
    return standard.Transpose(y, perm=TO_NCHW)


def packed_translations() -> dict:
    """The ``custom_translation_table`` of torch's exporter for the packed ops."""
    return {
        torch.ops.mmgroupnet.run_block.default: _run_block,
        torch.ops.mmgroupnet.connect.default: _connect,
    }
