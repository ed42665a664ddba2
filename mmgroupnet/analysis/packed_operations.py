"""Counts the binary operations of packed blocks, which torch and mmengine see as one op of unknown cost.

Pass them to mmengine's counter as handles::

    counter = FlopAnalyzer(packed, inputs).set_op_handle(**PACKED_HANDLES)
    counter.by_operator()  # 'binary' are binary operations, the others float ones

``get_model_complexity_info`` takes no handles: it counts only the float layers of a packed model.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmgroupnet.ops import Connection, UnitGeometry


def binary_operations(shape: Sequence[int], connection: int, geometry: Sequence[int], has_shortcut: bool) -> int:
    """Binary multiply-accumulates of a call of :func:`mmgroupnet.ops.run_block`.

    Args:
        shape: Shape of its input.
        connection, geometry, has_shortcut: Arguments of the call.
    """
    units = UnitGeometry.decode(tuple(geometry))
    batch, folded, height, width = shape
    branches = 1 if connection == Connection.MERGED else folded // units[0].in_channels
    given = connected = (branches, height, width)
    operations = 0
    for index, unit in enumerate(units):
        branches = unit.branches(given[0])
        height, width = unit.output_size(*given[1:])
        bases = unit.num_bases if unit.merges else 1
        operations += batch * branches * unit.out_channels * height * width * bases * unit.row_bits
        # The shortcut comes first; like the shortcut, the first unit reads the connected input.
        given = connected if has_shortcut and index == 0 else (branches, height, width)
    return operations


def _run_block(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Counts for mmengine, which passes values of a traced graph, ``torch._C.Value``."""
    x, connection, _, _, _, geometry, _, _, has_shortcut, _ = inputs
    numbers = [number.toIValue() for number in geometry.node().inputs()]
    shape = x.type().sizes()
    return Counter(binary=binary_operations(shape, connection.toIValue(), numbers, has_shortcut.toIValue()))


# For FlopAnalyzer.set_op_handle. Merging and pooling are not counted.
PACKED_HANDLES = {'mmgroupnet::run_block': _run_block, 'mmgroupnet::connect': None, 'mmgroupnet::max_pool': None}
