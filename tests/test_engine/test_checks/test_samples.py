"""Choosing samples of a data set."""

import pytest

from mmgroupnet.engine.checks.samples import spread


@pytest.mark.parametrize(
    ('size', 'count', 'expected'),
    [(0, 4, []), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (1000, 3, [0, 500, 999])],
)
def test_samples_are_spread_over_the_whole_set(size, count, expected):
    assert spread(size, count) == expected
