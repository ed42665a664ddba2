"""The authors' checkpoints: the converted classifier against the authors' network, a loop over branches, in float64."""

import logging
import re

import pytest
import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmgroupnet import convert_official
from mmgroupnet.converters import official
from mmgroupnet.deploy import pack_and_report
from tests.official import FAMILIES, OfficialNetwork, official_state_dict

families = pytest.mark.parametrize('family', FAMILIES.values(), ids=FAMILIES)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 75, 64, generator=torch.Generator().manual_seed(1), dtype=dtype)


def converted(state_dict: dict[str, Tensor], **backbone: object) -> nn.Module:
    """The classifier in evaluation mode, in float64; ``backbone`` changes its config."""
    model_cfg, weights = convert_official(state_dict)
    model_cfg['backbone'].update(backbone)
    model = MODELS.build(model_cfg).double()
    model.load_state_dict(weights, strict=True)
    return model.eval()


@torch.no_grad()
def relative_error(out: Tensor, expected: Tensor) -> float:
    return ((out - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('num_bases', [1, 2, 5])
@families
def test_logits_are_those_of_the_authors_network(family, num_bases):
    state_dict = official_state_dict(family, num_bases)
    model = converted(state_dict)
    x = images()
    expected = OfficialNetwork(state_dict, family, num_bases)(x)
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()  # the logits depend on the image
    assert relative_error(model(x, mode='tensor'), expected) < 1e-9  # lean
    with torch.no_grad():
        assert relative_error(model(x, mode='tensor'), expected) < 1e-9


@pytest.mark.parametrize('family', [FAMILIES['r18-gates'], FAMILIES['r18-scales-gates']], ids=str)
def test_every_part_of_the_wiring_counts(family):
    """The logits change with each of them: gates and scales of the last block, a norm's statistics, the stem's bias."""
    num_bases = 3
    state_dict = official_state_dict(family, num_bases)
    expected = OfficialNetwork(state_dict, family, num_bases)(images())
    names = ['layer4.1.block_gate', 'layer4.0.downsample.batch_norm.running_mean']
    names += ['layer4.1.scales.2', 'conv1.bias'] if family.scales else []
    for name in names:
        model = converted({**state_dict, name: state_dict[name] + 1})
        assert relative_error(model(images(), mode='tensor'), expected) > 1e-3, name


def test_the_sum_in_place_is_a_property_of_the_model():
    family = FAMILIES['r18-gates']
    state_dict = official_state_dict(family, num_bases=3)
    model_cfg, weights = convert_official(state_dict)
    assert model_cfg['backbone']['in_place_sum'] is True
    assert {name for name in weights if 'sums_in_place' in name} == {
        f'backbone.stages.{stage}.{block}.merge.sums_in_place' for stage in range(4) for block in range(2)
    }
    model_cfg['backbone']['in_place_sum'] = False
    plain = MODELS.build(model_cfg).double().eval()
    with pytest.raises(RuntimeError, match='sums_in_place'):
        plain.load_state_dict(weights, strict=True)
    plain.load_state_dict(weights, strict=False)
    expected = OfficialNetwork(state_dict, family, 3)(images())
    assert relative_error(plain(images(), mode='tensor'), expected) > 1e-2
    for other in set(FAMILIES.values()) - {family}:
        assert convert_official(official_state_dict(other))[0]['backbone']['in_place_sum'] is False


@families
def test_names_of_data_parallel_training(family):
    state_dict = official_state_dict(family)
    model_cfg, weights = convert_official({f'module.{name}': value for name, value in state_dict.items()})
    expected_cfg, expected = convert_official(state_dict)
    assert model_cfg == expected_cfg
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


def test_what_is_read_from_names_and_shapes():
    state_dict = official_state_dict(FAMILIES['r34-scales'], num_bases=3, channels=6, num_classes=11)
    model_cfg, weights = convert_official(state_dict)
    backbone = dict(
        type='mmgroupnet.GroupNetResNet',
        depth=34,
        num_bases=3,
        decomposition='gbd_v1',
        learned_scales=True,
        in_place_sum=False,
        stem_bias=False,
        base_channels=6,
        out_indices=(3,),
    )
    assert model_cfg['backbone'] == backbone
    assert (model_cfg['head']['num_classes'], model_cfg['head']['in_channels']) == (11, 48)
    mean, std = ([255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert model_cfg['data_preprocessor']['mean'] == pytest.approx(mean)
    assert model_cfg['data_preprocessor']['std'] == pytest.approx(std)
    assert model_cfg['data_preprocessor']['to_rgb'] is True
    assert {value.dtype for value in weights.values()} == {torch.float64, torch.int64}


@pytest.mark.parametrize(('family', 'number'), [('r18-gates', 55_662_127), ('r18-scales-gates', 55_662_231)])
def test_published_numbers_of_parameters(family, number):
    state_dict = {}
    for name, value in official_state_dict(FAMILIES[family], num_bases=5).items():
        shape = [64 // 4 * size if size in (4, 8, 16, 32) else size for size in value.shape]
        shape = [1000 if size == 7 and name.startswith('fc.') else size for size in shape]
        state_dict[name] = torch.ones((), dtype=torch.uint8).expand(shape)
    model_cfg, weights = convert_official(state_dict)
    with torch.device('meta'):
        model = MODELS.build(model_cfg)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == number


def test_parameters_lose_their_graph():
    state_dict = official_state_dict(FAMILIES['r18-scales'])
    parameters = {
        name: nn.Parameter(value) if value.is_floating_point() else value for name, value in state_dict.items()
    }
    assert not any(value.requires_grad for value in convert_official(parameters)[1].values())


def test_weights_of_exactly_zero_are_warned_of(monkeypatch):
    warnings = []
    monkeypatch.setattr(official, 'print_log', lambda message, logger, level: warnings.append((level, message)))
    state_dict = official_state_dict(FAMILIES['r18-scales'])
    state_dict['conv1.weight'][0, 0, 0, 0] = state_dict['fc.weight'][0, 0] = 0  # not binary
    convert_official(state_dict)
    assert warnings == []
    state_dict['layer2.0.downsample.conv.weight'][1, 1] = 0
    state_dict['layer2.1.conv2.1.weight'][0, 0, 0, :2] = 0
    convert_official(state_dict)
    ((level, message),) = warnings
    assert level == logging.WARNING and message.startswith('3 binary weights are exactly zero')


def test_checkpoints_of_old_versions_count_no_batches():
    state_dict = official_state_dict(FAMILIES['r18-gates'])
    old = {name: value for name, value in state_dict.items() if 'num_batches_tracked' not in name}
    _, expected = convert_official(state_dict)
    _, weights = convert_official(old)
    assert list(weights) == list(expected)
    for name, value in weights.items():
        assert value == 0 if 'num_batches_tracked' in name else torch.equal(value, expected[name])


class TestErrors:
    @pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
    def state_dict(self, request):
        return official_state_dict(request.param)

    @staticmethod
    def message(state_dict) -> str:
        with pytest.raises(ValueError) as error:
            convert_official(state_dict)
        assert '\n' not in str(error.value)
        return str(error.value)

    def test_every_single_name_is_missed(self, state_dict):
        for name in state_dict:
            found = self.message({other: value for other, value in state_dict.items() if other != name})
            assert f'1 missing: {name}' in found and 'unknown' not in found and 'misshapen' not in found

    def test_every_single_shape_is_checked(self, state_dict):
        for name, value in state_dict.items():
            if name in ('fc.weight', 'fc.bias'):
                continue
            found = self.message({**state_dict, name: value.new_zeros([size + 1 for size in value.shape] or [1])})
            assert f'1 misshapen: {name} (' in found and f'instead of {tuple(value.shape)}' in found
            assert 'unknown' not in found and 'missing' not in found

    def test_classes_on_which_weight_and_bias_disagree(self, state_dict):
        found = self.message({**state_dict, 'fc.bias': torch.zeros(9)})
        assert '2 misshapen: fc.weight (7, 32) instead of (9, 32), fc.bias (9,) instead of (7,)' in found

    def test_all_that_is_wrong_is_listed(self, state_dict):
        width = state_dict['layer2.0.conv1.0.weight'].shape[0]
        wrong = {
            **state_dict,
            'layer2.0.conv1.0.weight': torch.zeros(width, 3, 3),
            'layer3.1.bn2.1.bias': [1.0],
            'layer1.0.block_gate': torch.zeros(1),
            'layer1.0.conv3.0.weight': torch.zeros(1),
            'layer4.5.foo': torch.zeros(1),
        }
        missing = ['bn1.weight', 'layer4.0.downsample.conv.weight', 'layer3.0.bn1.1.running_var']
        for name in missing:
            del wrong[name]
        found = self.message(wrong)
        for name in missing:
            assert re.search(rf'3 missing: [^;]*{re.escape(name)}', found)
        for name in ('layer1.0.block_gate', 'layer1.0.conv3.0.weight', 'layer4.5.foo'):
            assert re.search(rf'3 unknown: [^;]*{re.escape(name)}', found)
        assert f'2 misshapen: layer2.0.conv1.0.weight ({width}, 3, 3) instead of ({width}, 4, 3, 3)' in found
        assert 'layer3.1.bn2.1.bias a list instead of (16,)' in found

    def test_a_name_that_is_there_twice(self, state_dict):
        assert '1 unknown: module.fc.bias' in self.message({**state_dict, 'module.fc.bias': state_dict['fc.bias']})

    def test_no_family_has_neither_scales_nor_gates(self, state_dict):
        bare = {name: value for name, value in state_dict.items() if not re.search('scales|block_gate', name)}
        found = self.message(bare)
        assert 'scales.* and block_gate are both missing' in found

    def test_a_missing_branch(self, state_dict):
        gone = [name for name in state_dict if re.match(r'layer3\.1\.\w+\.1(\.|$)', name)]
        found = self.message({name: value for name, value in state_dict.items() if name not in gone})
        assert f'{len(gone)} missing: ' in found and all(name in found for name in gone)

    def test_a_missing_block(self):
        state_dict = official_state_dict(FAMILIES['r34-scales'])
        gone = [name for name in state_dict if name.startswith('layer3.5.')]
        found = self.message({name: value for name, value in state_dict.items() if name not in gone})
        assert 'read as ResNet-34' in found and f'{len(gone)} missing: ' in found
        assert all(name in found for name in gone)

    def test_another_network(self):
        names = ('conv1.weight', 'layer1.0.conv1.weight')
        found = self.message({name: torch.zeros(4, 3, 3, 3) for name in names})
        assert 'no branches' in found and '2 unknown: conv1.weight, layer1.0.conv1.weight' in found
        assert '0 unknown' in self.message({})


@families
def test_the_classifier_packs(family):
    """The packed classifier equals the authors' network up to the rounding of float32."""
    state_dict = official_state_dict(family, num_bases=3)
    packed, layers = pack_and_report(converted(state_dict).float())
    assert [layer.problem for layer in layers if layer.problem] == []
    x = images()
    expected = OfficialNetwork(state_dict, family, 3)(x)
    with torch.no_grad():
        out = packed(x.float(), mode='tensor')
        assert relative_error(out, expected) < 1e-4
        fresh = MODELS.build(dict(type='mmgroupnet.Packed', model=convert_official(state_dict)[0]))
        fresh.load_state_dict(packed.state_dict(), strict=True)
        assert torch.equal(fresh(x.float(), mode='tensor'), out)
