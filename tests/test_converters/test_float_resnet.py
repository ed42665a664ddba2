"""Initialising a Group-Net from float ResNets of torchvision, mmpretrain and CIFAR-10."""

import logging
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS, DefaultScope
from mmpretrain.models import LinearClsHead
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from mmgroupnet.converters import FromFloatResNet, float_resnet
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d

CIFAR_CHECKPOINT = 'pretrained_cifar_resnet/resnet20-12fca82f.th'


@pytest.fixture(autouse=True)
def messages(monkeypatch):
    logged = []
    monkeypatch.setattr(float_resnet, 'print_log', lambda message, logger, level=logging.INFO: logged.append(message))
    return logged


def float_network(block=BasicBlock, blocks=(1, 1, 1, 1)) -> ResNet:
    torch.manual_seed(1)
    network = ResNet(block, list(blocks), num_classes=10)
    for value in network.state_dict().values():
        if value.dtype.is_floating_point and value.dim() == 1:
            value.copy_(torch.rand(value.shape))  # Random norms, so that copied norms would be found.
        elif value.dim() == 4:
            value *= 3  # as large as trained weights
    return network


def save(state_dict, path, **rest) -> str:
    torch.save(dict(state_dict=state_dict, **rest), path)
    return str(path)


def groupnet(num_bases=2, depth=18, **kwargs) -> nn.Module:
    kwargs = dict(dict(stage_blocks=(1, 1, 1, 1)), **kwargs)
    return MODELS.build(dict(type='mmgroupnet.GroupNetResNet', depth=depth, num_bases=num_bases, **kwargs))


def initialised(checkpoint: str, seed: int = 0, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    backbone = groupnet(init_cfg=dict(type='mmgroupnet.FromFloatResNet', checkpoint=checkpoint), **kwargs)
    backbone.init_weights()
    return backbone


def torchvision_pairs(backbone, network):
    """Pairs of corresponding convs in the residual branches of both networks."""
    for stage, blocks in enumerate(backbone.stages):
        for index, block in enumerate(blocks):
            source = getattr(network, f'layer{stage + 1}')[index]
            for number, unit in enumerate(block.units):
                yield unit.conv.weight, getattr(source, f'conv{number + 1}').weight


@pytest.mark.parametrize(('block', 'depth'), [(BasicBlock, 18), (Bottleneck, 50)], ids=['18', '50'])
def test_one_base_gets_the_weights_at_the_scale_of_random_ones_and_norms_start_anew(block, depth, tmp_path):
    network = float_network(block)
    backbone = initialised(save(network.state_dict(), tmp_path / 'r.pth'), num_bases=1, depth=depth)
    torch.manual_seed(0)
    fresh = groupnet(num_bases=1, depth=depth)
    assert torch.equal(backbone.stem[0].weight, network.conv1.weight)
    pairs = list(torchvision_pairs(backbone, network))
    random = [weight for weight, _ in torchvision_pairs(fresh, network)]
    for stage in range(depth == 18, 4):  # Only a bottleneck changes the number of channels in the first stage.
        source = getattr(network, f'layer{stage + 1}')[0].downsample[0].weight
        pairs.append((backbone.stages[stage][0].shortcut[0].weight, source))
        random.append(fresh.stages[stage][0].shortcut[0].weight)
    for (weight, source), weight_before in zip(pairs, random, strict=True):
        assert_close(weight, source * (weight_before.std() / source.std()))
        assert source.std() > 2 * weight.std()  # else the scales would not be tested
    for name, value in backbone.state_dict().items():
        if '.norm.' in name or re.search(r'(stem\.2|shortcut\.1)\.', name):
            assert torch.equal(value, fresh.state_dict()[name]), name


def test_a_model_on_another_device(tmp_path):
    checkpoint = save(float_network().state_dict(), tmp_path / 'r.pth')
    with torch.device('meta'):
        backbone = groupnet()
    FromFloatResNet(checkpoint)(backbone)
    assert backbone.stages[0][0].units[0].conv.weight.is_meta


def test_full_precision_shortcuts_get_the_weights_themselves(tmp_path):
    network = float_network()
    backbone = initialised(save(network.state_dict(), tmp_path / 'r.pth'), binary_downsample=False)
    assert torch.equal(backbone.stages[1][0].shortcut[0].weight, network.layer2[0].downsample[0].weight)


@pytest.mark.parametrize('decomposition', ['soft_gate', 'gbd_v3', 'lbd'])
def test_bases_are_the_weights_with_noise_of_their_own(decomposition, tmp_path):
    num_bases = 3
    network = float_network()
    checkpoint = save(network.state_dict(), tmp_path / 'r.pth')
    backbone = initialised(checkpoint, num_bases=num_bases, decomposition=decomposition)
    for weight, source in torchvision_pairs(backbone, network):
        # Noise of half the standard deviation makes the sum's sqrt(1 + 0.25) times as large.
        bases = weight.unflatten(0, (num_bases, -1)) * (1.25**0.5 * source.std() / weight.std())
        noise = bases - source
        assert_close(noise.std() / source.std(), torch.tensor(0.5), rtol=0.02, atol=0)
        flat = noise.flatten(1)
        assert (torch.corrcoef(flat) - torch.eye(num_bases)).abs().max() < 0.03
        assert torch.corrcoef(torch.stack([flat[0], source.flatten()]))[0, 1].abs() < 0.03
    # The branches share the shortcut's weights, except with LBD, which has K copies.
    shortcut, source = backbone.stages[1][0].shortcut[0].weight, network.layer2[0].downsample[0].weight
    assert len(shortcut) == (num_bases if decomposition == 'lbd' else 1) * len(source)
    is_source = len(shortcut) == len(source) and torch.allclose(shortcut / shortcut.std(), source / source.std())
    assert is_source == (decomposition != 'lbd')


def test_signs_of_many_bases_together_keep_the_magnitude(tmp_path):
    """The mean of sign(w + n) is erf(sqrt(2) w / sigma), as the docstring of FromFloatResNet states."""
    network = float_network(blocks=(1, 1, 1, 1))
    num_bases = 400
    state_dict = {
        name: value for name, value in network.state_dict().items() if name.startswith(('conv1', 'bn1', 'layer1'))
    }
    backbone = initialised(
        save(state_dict, tmp_path / 'r.pth'), num_bases=num_bases, stage_blocks=(1,), strides=(1,), dilations=(1,)
    )
    source = network.layer1[0].conv1.weight
    signs = backbone.stages[0][0].units[0].conv.weight.unflatten(0, (num_bases, -1)).sign().mean(0)
    error = signs - torch.erf(2**0.5 * source / source.std())
    # The mean of 400 signs has a standard deviation of at most 1 / 20.
    assert error.abs().max() < 5.5 / 20
    assert error.mean().abs() < 0.002


def test_names_of_all_sources_give_the_same_network(tmp_path):
    network = float_network().state_dict()
    sources = dict(
        torchvision=network,
        mmpretrain={(f'head.{k}' if k.startswith('fc.') else f'backbone.{k}'): v for k, v in network.items()},
        cifar={f'module.{k.replace("fc.", "linear.")}': v for k, v in network.items()},
        pooled_shortcut={
            k.replace('downsample.0', 'downsample.1'): v for k, v in network.items() if 'downsample.1' not in k
        },
    )
    expected = None
    for name, state_dict in sources.items():
        given = initialised(save(state_dict, tmp_path / f'{name}.pth')).state_dict()
        expected = expected or given
        assert all(torch.equal(given[key], value) for key, value in expected.items()), name


def test_parts_of_a_classifier_keep_their_names():
    names = ['backbone.conv1.weight', 'neck.p', 'head.fc.weight']
    assert list(float_resnet.to_classifier_names(dict.fromkeys(names))) == names


def test_a_bare_state_dict_is_taken(tmp_path):
    network = float_network().state_dict()
    torch.save(network, tmp_path / 'bare.pth')
    given, wanted = (
        initialised(path).state_dict() for path in (str(tmp_path / 'bare.pth'), save(network, tmp_path / 'r.pth'))
    )
    assert all(torch.equal(given[key], value) for key, value in wanted.items())


def test_shortcuts_without_parameters_are_listed_and_drawn(tmp_path, messages):
    network = {k: v for k, v in float_network().state_dict().items() if 'downsample' not in k}
    checkpoint = save(network, tmp_path / 'r.pth')
    backbone = initialised(checkpoint)
    torch.manual_seed(0)
    fresh = groupnet()
    for stage in (1, 2, 3):
        name = f'{stage}.0.shortcut.0.weight'
        assert torch.equal(backbone.stages.state_dict()[name], fresh.stages.state_dict()[name])
    assert messages == [
        f'9 of 12 convs start from the float ResNet {checkpoint}; norms start from their defaults; '
        'not in it, and random: layer2.0.downsample.weight, layer3.0.downsample.weight, layer4.0.downsample.weight'
    ]


def test_all_that_matched_is_said(tmp_path, messages):
    checkpoint = save(float_network().state_dict(), tmp_path / 'r.pth')
    initialised(checkpoint)
    assert messages == [f'12 of 12 convs start from the float ResNet {checkpoint}; norms start from their defaults']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(stage_blocks=(1, 2, 1, 1)), '2 missing: layer2.1.conv1.weight, layer2.1.conv2.weight'),
        (dict(depth=50), r'4 missing: layer1.0.conv3.weight'),
        (
            dict(stage_blocks=(1, 1, 1), strides=(1, 2, 2), dilations=(1, 1, 1)),
            '3 unexpected: layer4.0.conv1.weight, layer4.0.conv2.weight, layer4.0.downsample.weight',
        ),
        (dict(base_channels=32), r'12 of another shape: conv1.weight (64, 3, 7, 7) instead of (32, 3, 7, 7)'),
        (dict(stem='cifar'), r'1 of another shape: conv1.weight (64, 3, 7, 7) instead of (64, 3, 3, 3)'),
    ],
)
def test_another_topology_is_refused_before_anything_is_changed(change, message, tmp_path):
    checkpoint = save(float_network().state_dict(), tmp_path / 'r.pth')
    backbone = groupnet(**change)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(UserError, match=re.escape(message)) as error:
        FromFloatResNet(checkpoint)(backbone)
    assert str(error.value).startswith(f'checkpoint {checkpoint} is no float ResNet of the topology of the backbone (')
    assert all(torch.equal(backbone.state_dict()[name], value) for name, value in before.items())


def test_names_that_are_no_resnets_are_refused(tmp_path):
    network = dict(float_network().state_dict(), **{'layer1.0.conv1.bias': torch.zeros(64), 'neck.x': torch.zeros(1)})
    with pytest.raises(UserError, match=r'2 unexpected: layer1.0.conv1.bias, neck.x'):
        initialised(save(network, tmp_path / 'r.pth'))


def test_a_groupnet_is_no_float_resnet(tmp_path):
    with pytest.raises(UserError, match=r'9 missing: conv1.weight.*unexpected: stem.0.weight'):
        initialised(save(groupnet().state_dict(), tmp_path / 'r.pth'))


def test_a_checkpoint_that_carries_code_is_refused(tmp_path):
    path = save(float_network().state_dict(), tmp_path / 'r.pth', code=Path)
    with pytest.raises(UserError, match=r'carries code \(pathlib\S+\) and is refused'):
        initialised(path)


def test_only_backbones_are_initialised(tmp_path):
    checkpoint = save(float_network().state_dict(), tmp_path / 'r.pth')
    with pytest.raises(UserError, match='init_cfg of LinearClsHead: FromFloatResNet initialises a GroupNetResNet'):
        FromFloatResNet(checkpoint)(LinearClsHead(10, 512))


def test_a_config_initialises_the_backbone_and_not_the_classifier(tmp_path):
    network = float_network()
    config = dict(
        type='ImageClassifier',
        backbone=dict(
            type='mmgroupnet.GroupNetResNet',
            depth=18,
            num_bases=2,
            stage_blocks=(1, 1, 1, 1),
            out_indices=(3,),
            init_cfg=dict(type='mmgroupnet.FromFloatResNet', checkpoint=save(network.state_dict(), tmp_path / 'r.pth')),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=512),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
        model.init_weights()
    assert_close(model.head.fc.weight.std(), torch.tensor(0.01), rtol=0.1, atol=0)  # LinearClsHead's default
    assert torch.equal(model.backbone.stem[0].weight, network.conv1.weight)
    correlations = [
        torch.corrcoef(torch.stack([weight.unflatten(0, (2, -1)).mean(0).flatten(), source.flatten()]))[0, 1]
        for weight, source in torchvision_pairs(model.backbone, network)
    ]
    # Two bases, with noise of half the weights' standard deviation: 1 / sqrt(1 + 0.25 / 2) = 0.943.
    assert_close(torch.stack(correlations), torch.full((8,), 0.943), atol=0.01, rtol=0)


def test_learned_scales_start_at_the_weights(tmp_path):
    checkpoint = save(float_network().state_dict(), tmp_path / 'float.pth')
    backbone = initialised(checkpoint, binary_cfg=dict(weight=dict(type='mmgroupnet.LearnedScaleWeight')))
    for module in backbone.modules():
        if isinstance(module, BinaryConv2d):
            assert_close(module.weight_quantizer.alpha.detach(), module.weight.detach().abs().mean((1, 2, 3)))


def test_it_is_registered():
    assert WEIGHT_INITIALIZERS.get('mmgroupnet.FromFloatResNet') is FromFloatResNet


@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50', 'resnet101'])
def test_whole_networks_of_torchvision_match(name, tmp_path, messages):
    depth = int(name.removeprefix('resnet'))
    with torch.device('meta'):
        network = getattr(resnet, name)()
        backbone = groupnet(num_bases=1, depth=depth, stage_blocks=None)
    weights, unknown = float_resnet.conv_weights(network.state_dict())
    wanted = {conv: module.weight.shape for conv, module in float_resnet._convs(backbone).items()}
    assert {conv: value.shape for conv, value in weights.items()} == wanted
    assert not unknown
    assert sum(isinstance(module, BinaryConv2d) for module in backbone.modules()) == len(wanted) - 1


@pytest.fixture
def cifar_checkpoint():
    root = Path(__file__).parents[2]
    for folder in (root / 'data', root.parent / 'shared' / 'data'):
        if (folder / CIFAR_CHECKPOINT).exists():
            return folder / CIFAR_CHECKPOINT
    pytest.skip(f'{CIFAR_CHECKPOINT} is neither in data nor in ../shared/data')


def test_a_published_resnet20_of_cifar10(cifar_checkpoint, messages):
    kwargs = dict(depth=20, stage_blocks=None, stem='cifar', base_channels=16, binary_downsample=False)
    backbone = initialised(str(cifar_checkpoint), num_bases=1, **kwargs)
    given = torch.load(cifar_checkpoint, map_location='cpu', weights_only=True)['state_dict']
    weight, source = backbone.stages[2][1].units[1].conv.weight, given['module.layer3.1.conv2.weight']
    assert_close(weight / weight.std(), source / source.std())
    (message,) = messages
    assert message.startswith('19 of 21 convs start from')


@pytest.mark.parametrize('value', [0.0, math.nan])
def test_weights_that_give_no_signs_are_refused(value, tmp_path):
    network = float_network()
    nn.init.constant_(network.layer2[0].conv1.weight, value)
    checkpoint = save(network.state_dict(), tmp_path / 'r.pth')
    with pytest.raises(UserError, match=r'\(1 of equal or non-finite values: layer2\.0\.conv1\.weight\)'):
        FromFloatResNet(checkpoint)(groupnet())
