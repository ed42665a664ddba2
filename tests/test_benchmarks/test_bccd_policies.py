"""The benchmarked policies and their table."""

from benchmarks import bccd_policies


def test_every_policy_is_there():
    folder = bccd_policies.ROOT / 'configs/_base_/policies'
    ready = {path.stem for path in folder.glob('*.py')}
    assert set(bccd_policies.POLICIES) == ready | {bccd_policies.FLOAT}


def test_table():
    line = dict(policy='groupnet_k4', AP=0.49, AP50=0.872, parameters=1000, binary_parameters=991, epochs=9)
    assert bccd_policies.results_table([line]).splitlines()[-1] == (
        '| backbone, neck, head (the default) | [groupnet_k4](../_base_/policies/groupnet_k4.py) | 0.490 | 0.872 | '
        '99.1% | 9 |'
    )
