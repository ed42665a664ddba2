from mmgroupnet.engine.checks.classes import disagreement


def test_names_at_other_positions():
    assert disagreement(['a', 'b', 'c'], ['a', 'c', 'b']) == (1, 2)
    assert disagreement(['a', 'b'], ['b']) == (1, 0)
    assert disagreement(['a', 'b'], ['a', 'b', 'c']) is None


def test_a_name_may_be_there_twice():
    """ImageNet has two classes 'crane'."""
    assert disagreement(['crane', 'b', 'crane'], ['crane', 'b', 'crane']) is None
    assert disagreement(['crane', 'b', 'crane'], ['crane', 'crane', 'b']) == (1, 2)
