"""Names of types in configs."""

from pathlib import Path

import pytest

from mmgroupnet.model_configs import type_name


@pytest.mark.parametrize(
    ('entry', 'expected'),
    [
        (dict(type='A'), 'A'),
        (dict(type='x.A'), 'A'),
        (dict(type='x.y.A'), 'A'),
        (dict(type=Path), 'Path'),
        (dict(), ''),
        (ValueError('built'), 'ValueError'),
    ],
    ids=str,
)
def test_type_name(entry, expected):
    assert type_name(entry) == expected
