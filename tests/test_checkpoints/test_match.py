import pytest
import torch
from torch import nn

from mmgroupnet.checkpoints.match import check_state_dict, load_what_fits
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


def test_what_fits_is_loaded():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    weights = {f'module.{name}': torch.full_like(value, 2) for name, value in model.state_dict().items()}
    assert load_what_fits(model, dict(state_dict=weights)).is_whole()
    del weights['module.1.num_batches_tracked'], weights['module.1.bias']
    weights |= {'module.0.weight': torch.ones(2, 4), 'module.0.bias': torch.ones(2), 'head.bias': torch.ones(1)}
    found = load_what_fits(model, weights)
    assert found.taken == ['0.bias', '1.weight', '1.running_mean', '1.running_var', '2.weight', '2.bias']
    assert found.misshaped == {'0.weight': '(2, 4) instead of (2, 3)'}
    assert (found.unknown, found.new) == (['head.bias'], ['1.bias'])
    assert not found.is_whole()
    assert model[0].bias.tolist() == [1, 1] and model[0].weight.unique().tolist() == [2]
    assert not model._load_state_dict_post_hooks


class Versioned(nn.Linear):
    """Negates the weights of files of version 1; heads of mmdet convert old files in a similar way."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        if local_metadata.get('version', 1) < 2:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}weight').neg()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_modules_know_the_version_of_what_they_load():
    model = nn.Sequential(Versioned(3, 2), nn.Linear(2, 2))
    weights = model.state_dict()
    expected = weights['0.weight'].clone()
    del weights['1.bias']
    assert load_what_fits(model, dict(state_dict=weights)).new == ['1.bias']
    assert model[0].weight.equal(expected)
