import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True, scope='module')
def default_scopes_end_with_their_module():
    """A Runner leaves its default scope behind, and unscoped types of the tests after it would mean something else."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
