import pytest
import torch
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.errors import UserError


def test_another_architecture_is_listed():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    weights = model.state_dict()
    check_state_dict(model, dict(state_dict={f'module.{key}': value for key, value in weights.items()}), 'a.pth')
    del weights['1.num_batches_tracked']
    check_state_dict(model, weights, 'a.pth')
    weights['2.weight'] = weights.pop('1.weight')
    weights['0.weight'] = torch.ones(2, 4)
    with pytest.raises(UserError) as caught:
        check_state_dict(model, weights, 'a.pth')
    assert 'checkpoint a.pth is of another architecture' in str(caught.value)
    assert '1 missing: 1.weight; 1 unexpected: 2.weight' in str(caught.value)
    assert '1 of another shape: 0.weight (2, 4) instead of (2, 3)' in str(caught.value)
