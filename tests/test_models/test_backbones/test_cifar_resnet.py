"""The float ResNets of CIFAR-10."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmgroupnet.converters.float_resnet import to_classifier_names
from mmgroupnet.models.backbones.cifar_resnet import CIFARResNet, PaddedShortcut

DATA = [Path(__file__).parents[3] / 'data', Path(__file__).parents[4] / 'shared' / 'data']


def find(name: str) -> Path:
    for folder in DATA:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f'{name} is neither in data nor in ../shared/data')


def test_shortcut_takes_every_second_pixel_between_zeros():
    x = torch.arange(2 * 3 * 3.0).view(1, 2, 3, 3)
    out = PaddedShortcut()(x)
    assert out.shape == (1, 4, 2, 2)
    assert not out[:, [0, 3]].any()
    assert_close(out[0, 1:3], torch.tensor([[[0.0, 2], [6, 8]], [[9, 11], [15, 17]]]))


# Table 6 of the ResNet paper: 0.27M, 0.46M, 0.66M and 0.85M parameters, including the classifier.
@pytest.mark.parametrize(('depth', 'millions'), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_number_of_parameters_is_the_papers(depth, millions):
    network = nn.ModuleList([CIFARResNet(depth), nn.Linear(64, 10)])
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


def test_shape_and_gradients():
    network = CIFARResNet(20)
    network.init_weights()
    (out,) = network(torch.randn(2, 3, 32, 30))
    assert out.shape == (2, 64, 8, 8)
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in network.parameters())


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match='depth=18: CIFARResNet has the depths 20, 32, 44, 56'):
        CIFARResNet(18)


def test_a_published_network_is_right_about_nine_images_of_ten():
    source = find('pretrained_cifar_resnet/resnet20-12fca82f.th')
    with open(find('cifar10/cifar-10-batches-py/test_batch'), 'rb') as file:
        batch = pickle.load(file, encoding='latin1')
    weights = to_classifier_names(torch.load(source, map_location='cpu', weights_only=True)['state_dict'])
    network, fc = CIFARResNet(20), nn.Linear(64, 10)
    backbone = {k.removeprefix('backbone.'): v for k, v in weights.items() if k.startswith('backbone.')}
    missing, unexpected = network.load_state_dict(backbone, strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing)
    fc.load_state_dict({k.removeprefix('head.fc.'): v for k, v in weights.items() if k.startswith('head.')})
    network.eval()
    images = torch.from_numpy(batch['data'][:500]).view(-1, 3, 32, 32) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = fc(network((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))[0].mean((2, 3)))
    assert (logits.argmax(1) == torch.tensor(batch['labels'][:500])).double().mean() > 0.86
