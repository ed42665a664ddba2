import pytest
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import nn

from mmgroupnet.converters.policy import decide, iterate_chains, parse_policy
from mmgroupnet.layers import BinaryConv2d

LAYERWISE = dict(become='layerwise', num_bases=2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)


class Child(Block):
    """The name of its base class selects it as well."""


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stage = nn.Sequential(Block(), Child(), nn.ReLU(), Block())
        self.head = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Linear(4, 2)])


def decided(policy, of=None) -> dict[str, int | None]:
    """The index of the rule that decides for each layer."""
    decisions = decide(of or _Model(), parse_policy(policy))
    return {name: decision.rule for decision in decisions.layers for name in decision.names}


class TestRules:
    @pytest.mark.parametrize(
        ('rule', 'message'),
        [
            (dict(become='ternary'), r'policy\[0\].*become is one of binary, layerwise, groupwise, keep'),
            (dict(become='keep', name='stem'), r"policy\[0\]: a rule has no key 'name' \(did you mean 'names'\?\)"),
            (dict(become='keep', num_bases=2), 'num_bases=2 has no meaning for become=.keep.'),
            (dict(become='keep', skip=True), 'skip=True has no meaning for become=.keep.'),
            (dict(become='binary', gates=True), 'gates=True has no meaning for become=.binary.'),
            (dict(become='layerwise'), 'num_bases=None: layerwise takes a number of bases'),
            (dict(become='layerwise', num_bases=0), 'num_bases=0'),
            (dict(become='groupwise', num_bases=2), 'groupwise needs the classes of the blocks'),
            (
                dict(become='binary', binary_cfg=dict(bias=False)),
                "binary_cfg has no option 'bias' for become='binary'. Its options: activation, weight, padding_value, ",
            ),
            (
                dict(become='binary', binary_cfg=dict(learned_scales=True)),
                "no option 'learned_scales' for become='binary'",
            ),
            (dict(become='layerwise', num_bases=2, binary_cfg=dict(input_norm=None)), "no option 'input_norm'"),
            (dict(become='keep', names=3), 'names=3: give a string or a list of strings'),
            (dict(become='keep', types=[]), r'types=\[\]: give a string'),
        ],
    )
    def test_malformed(self, rule, message):
        with pytest.raises(ValueError, match=message):
            parse_policy([rule])

    @pytest.mark.parametrize('policy', [[], 'groupnet_k4.py', dict(become='keep'), None])
    def test_no_list(self, policy):
        with pytest.raises(ValueError, match='give a list of rules'):
            parse_policy(policy)


class TestSelection:
    def test_the_first_rule_that_selects_decides(self):
        policy = [dict(become='keep', names='stem'), dict(become='binary', names='stage.0'), LAYERWISE]
        expected = {'stem': 0, 'stage.0.conv': 1, 'stage.1.conv': 2, 'stage.3.conv': 2, 'head.0': 2, 'head.1': None}
        assert decided(policy) == expected

    def test_names_are_patterns_of_the_layer_or_what_contains_it(self):
        policy = [dict(become='keep', names=['s*m', '*.1.conv']), dict(become='binary', names='stage')]
        assert [name for name, rule in decided(policy).items() if rule == 0] == ['stem', 'stage.1.conv']
        assert [name for name, rule in decided(policy).items() if rule == 1] == ['stage.0.conv', 'stage.3.conv']

    def test_types_are_classes_and_their_bases(self):
        found = decided([dict(become='binary', types='Child')])
        assert [name for name, rule in found.items() if rule == 0] == ['stage.1.conv']
        found = decided([dict(become='binary', types='Block')])
        assert [name for name, rule in found.items() if rule == 0] == ['stage.0.conv', 'stage.1.conv', 'stage.3.conv']

    def test_linears_have_to_be_named(self):
        assert decided([dict(become='binary')])['head.1'] is None
        assert decided([dict(become='binary', types=['Linear'])])['head.1'] == 0
        assert decided([dict(become='keep', names='head'), dict(become='binary')])['head.1'] == 0


class TestErrors:
    def test_a_rule_that_selects_nothing(self):
        with pytest.raises(ValueError, match=r"names=\['steam'\]\) selects no layer of _Model. Its modules: stem, "):
            decided([dict(become='keep', names='steam'), dict(become='binary')])
        decided([dict(become='keep', names='steam', optional=True), dict(become='binary')])

    def test_a_rule_that_comes_too_late(self):
        with pytest.raises(ValueError, match=r'policy\[1\] .* contradicts the rules above it'):
            decided([dict(become='binary'), dict(become='keep', names='stem')])

    def test_two_rules_for_one_layer_with_two_names(self):
        of = _Model()
        of.alias = of.stem
        with pytest.raises(ValueError, match=r'stem and alias are one and the same layer, but policy\[0\] decides'):
            decided([dict(become='keep', names='stem'), dict(become='binary')], of)
        assert decided([dict(become='keep', names=['stem', 'alias']), dict(become='binary')], of)['alias'] == 0

    def test_a_rule_for_layers_of_a_group(self):
        group = dict(become='groupwise', types='Block', num_bases=2)
        with pytest.raises(ValueError, match=r'policy\[0\] makes stage.0.conv binary, and policy\[1\] makes the block'):
            decided([dict(become='binary', types='Conv2d'), group])

    def test_blocks_inside_blocks(self):
        with pytest.raises(ValueError, match='selects stage.0 inside stage, which becomes a group itself'):
            decided([dict(become='groupwise', types=['Sequential', 'Block'], num_bases=2)])

    def test_nothing_becomes_binary(self):
        with pytest.raises(ValueError, match='makes no layer of _Model binary$'):
            decided([dict(become='keep')])
        reason = r'no rule selects its linears \(1\), which types has to name: "Linear"\)$'
        with pytest.raises(ValueError, match=rf'makes no layer of _Model binary \({reason}'):
            decided([dict(become='keep', types='Conv2d')])
        of = nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 2))
        with pytest.raises(
            ValueError, match=r'Sequential binary \(2 selected layers have no binary form, transposed\)$'
        ):
            decided([dict(become='binary')], of)


class TestGroups:
    group = dict(become='groupwise', types='Block', num_bases=2)

    def test_chains_end_where_something_else_stands_between(self):
        of = _Model()
        decisions = decide(of, parse_policy([self.group]))
        assert list(iterate_chains(of, decisions.blocks)) == [(of.stage, ['0', '1'], 0), (of.stage, ['3'], 0)]

    def test_blocks_in_a_list_are_no_chain(self):
        of = nn.ModuleList([Block(), Block()])
        decisions = decide(of, parse_policy([self.group]))
        assert list(iterate_chains(of, decisions.blocks)) == [(of, ['0'], 0), (of, ['1'], 0)]

    def test_a_keep_of_blocks_is_none_of_their_layers(self):
        kept = decide(_Model(), parse_policy([dict(become='keep', names='stage.0'), self.group]))
        assert list(kept.blocks) == ['stage.1', 'stage.3']
        inner = decide(_Model(), parse_policy([dict(become='keep', names='*.0.conv'), self.group]))
        assert list(inner.blocks) == ['stage.0', 'stage.1', 'stage.3']
        assert {d.names[0]: d.rule for d in inner.layers}['stage.0.conv'] == 0


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.second.weight = self.first.weight


def _deformable() -> nn.Module:
    from mmcv.ops import ModulatedDeformConv2dPack

    return ModulatedDeformConv2dPack(4, 4, 3)


def _with_own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 0 * x
    return layer


@pytest.mark.parametrize(
    ('layer', 'problems'),
    [
        (DepthwiseSeparableConvModule(4, 8, 3), ['depthwise', None]),
        (nn.ConvTranspose2d(4, 4, 2), ['transposed']),
        (nn.Conv1d(4, 4, 1), ['Conv1d is not 2D']),
        (_deformable(), ['deformable', 'deformable']),
        (nn.Conv2d(4, 4, 3, padding_mode='reflect'), ["padding_mode='reflect'"]),
        (nn.Conv2d(4, 4, 3, dilation=(1, 2)), ['dilation=(1, 2) differs between the axes']),
        (nn.Conv2d(4, 4, 2, padding='same'), ["padding='same' of kernel_size=(2, 2)"]),
        (ConvModule(4, 4, 3, conv_cfg=dict(type='ConvWS')), ['ConvWS2d computes something of its own']),
        (_with_own_forward(nn.Conv2d(4, 4, 3)), ['Conv2d computes something of its own']),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), ['its weight is computed from others']),
        (nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), ['its weight is computed from others']),
        (
            ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True),
            ['its weights are used by efficient_conv_bn_eval of mmcv.cnn.ConvModule'],
        ),
        (_Attention(), ['its weights are used by nn.MultiheadAttention itself']),
        (_Tied(), ['another layer has the same weight'] * 2),
    ],
)
def test_what_has_no_binary_form(layer, problems):
    of = nn.Sequential(nn.Conv2d(4, 4, 1), layer)
    types = ['Conv2d', '_ConvNd', 'Linear', 'ModulatedDeformConv2d']
    decisions = decide(of, parse_policy([dict(become='binary', types=types)]))
    assert [decision.problem for decision in decisions.layers[1:]] == problems


def test_a_conv_of_one_channel_is_not_depthwise():
    decisions = decide(nn.Sequential(nn.Conv2d(1, 8, 3)), parse_policy([dict(become='binary')]))
    assert [decision.problem for decision in decisions.layers] == [None]


def test_blocks_of_two_rules_are_two_chains():
    of = nn.Sequential(Block(), Block(), Block())
    rules = [
        dict(become='groupwise', types='Block', names=['0', '1'], num_bases=2),
        dict(become='groupwise', types='Block', num_bases=3),
    ]
    decisions = decide(of, parse_policy(rules))
    assert list(iterate_chains(of, decisions.blocks)) == [(of, ['0', '1'], 0), (of, ['2'], 1)]


def test_a_shared_block_cannot_become_a_group():
    block = Block()
    of = nn.ModuleDict(dict(first=block, second=block))
    with pytest.raises(ValueError, match='selects second, which is the same block as first: a shared block cannot'):
        decide(of, parse_policy([dict(become='groupwise', types='Block', num_bases=2)]))


def test_blocks_that_are_binary_already_are_no_groups():
    of = nn.Sequential(Block(), Block())
    of[0].conv = BinaryConv2d(4, 4, 3)
    decisions = decide(of, parse_policy([dict(become='groupwise', types='Block', num_bases=2)]))
    assert list(decisions.blocks) == ['1']
