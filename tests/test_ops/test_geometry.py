from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmgroupnet.ops import Residual, UnitGeometry
from mmgroupnet.ops.kernels import Unit
from tests.test_ops.oracle import geometry


@st.composite
def geometries(draw: st.DrawFn) -> UnitGeometry:
    pairs = st.tuples(st.integers(1, 9), st.integers(1, 9))
    num_bases = draw(st.integers(1, 5))
    return UnitGeometry(
        num_bases,
        draw(st.integers(1, 4096)),
        draw(st.integers(1, 4096)),
        draw(st.integers(1, 8)),
        draw(pairs),
        draw(pairs),
        draw(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9))),
        draw(st.sampled_from([-1, 0, 1])),
        tuple(draw(st.lists(st.integers(1, 24), min_size=num_bases, max_size=num_bases))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(Residual)),
    )


@given(st.lists(geometries(), max_size=4))
def test_decodes_what_was_encoded(units):
    numbers = [number for unit in units for number in unit.encode()]
    assert all(type(number) is int for number in numbers)
    decoded = UnitGeometry.decode(tuple(numbers))
    assert decoded == tuple(units)
    # Decoding must also restore the types, which the comparison above does not check: a Residual or a bool equals its
    # number.
    assert all(type(unit.residual) is Residual and type(unit.relu) is bool for unit in decoded)


def test_padding_of_each_branch():
    same = geometry(num_bases=3, kernel_size=(3, 5), padding=None, dilations=(1, 2, 3))
    assert [same.pad_of(branch) for branch in range(3)] == [(1, 2), (2, 4), (3, 6)]
    fixed = geometry(num_bases=3, kernel_size=(3, 5), padding=(4, 0))
    assert [fixed.pad_of(branch) for branch in range(3)] == [(4, 0)] * 3


@pytest.mark.parametrize('size', [(7, 5), (3, 8)])
@pytest.mark.parametrize(
    'overrides',
    [
        dict(),
        dict(stride=(2, 1)),
        dict(stride=(2, 3), kernel_size=(2, 4), padding=(0, 2)),
        dict(padding=None, dilations=(2, 2), kernel_size=(3, 1)),
        dict(padding=(3, 2), dilations=(3, 3), kernel_size=(3, 2)),
    ],
    ids=str,
)
def test_output_size(overrides, size):
    unit = geometry(**overrides)
    out = F.conv2d(
        torch.empty(1, 1, *size, device='meta'),
        torch.empty(1, 1, *unit.kernel_size, device='meta'),
        None,
        unit.stride,
        unit.pad_of(0),
        unit.dilations[0],
    )
    assert unit.output_size(*size) == tuple(out.shape[2:])


@pytest.mark.parametrize(
    ('overrides', 'rows', 'branches_of_three'),
    [(dict(), 15, 3), (dict(shares_weights=True), 5, 3), (dict(merges=True), 15, 1)],
    ids=['separate', 'shared', 'merged'],
)
def test_weights_and_branches(overrides, rows, branches_of_three):
    unit = geometry(num_bases=3, in_channels=6, out_channels=5, groups=2, kernel_size=(3, 2), **overrides)
    assert unit.weight_rows == rows
    assert unit.row_bits == 18
    assert unit.branches(3) == branches_of_three


@given(geometries())
def test_struct_holds_the_encoded_numbers(unit):
    struct = Unit.of(unit)
    numbers = []
    for field in fields(unit):
        value = getattr(struct, field.name)
        if field.name == 'dilations':
            numbers += value[: unit.num_bases]
        else:
            numbers += [value] if isinstance(value, int) else value
    assert numbers == unit.encode()
    assert struct.weights is None and struct.sign_shift is None
