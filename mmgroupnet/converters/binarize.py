"""Makes the layers of any model binary, according to a policy."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgroupnet.converters.bases import branch_weight, fit_bases
from mmgroupnet.converters.policy import Decision, Decisions, Rule, decide, iterate_chains, parse_policy
from mmgroupnet.converters.report import Binarization, RuleMatches, note_binarization
from mmgroupnet.errors import UserError
from mmgroupnet.layers import (
    BinaryConv2d,
    BinaryLinear,
    GroupwiseChain,
    LayerwiseBinaryConv2d,
    LayerwiseBinaryLinear,
    RealValuedSkip,
    guard_foreign_code,
)

# Least number of channels per group in a group norm in front of a linear layer. A vector is one pixel, and a group of
# one or two channels would always be normalised to the same values.
_LINEAR_GROUP_SIZE = 8

# A conv of zeros has changed its function if its binary weights are larger.
_SMALL = 1e-3


def binarize(model: nn.Module, policy: Sequence[Mapping]) -> nn.Module:
    """Makes the layers of a model binary that a policy selects.

    Untouched parts keep their names. A binary layer keeps its name and those of its ``weight`` and ``bias``. A chain of
    blocks that becomes a group takes the name of its first block. Depthwise, transposed and deformable convolutions and
    other layers without a binary form are kept and reported. The latent weights start from the float weights:

    - a single base has the weights of the layer;
    - the K bases of a layer-wise conv are fitted with the scale of their quantizer, so that their merged weights are
      close to the float weights, see :func:`mmgroupnet.converters.bases.fit_bases`;
    - the first of the K branches of a group has the weights of the block, the others these weights plus noise of the
      same size. The mean of the signs of noisy copies follows the weight; a single sign keeps only its sign.

    No two bases start equal, since they would stay equal for ever. If the float weights do not make them differ, as in
    a layer of zeros, they differ in a way that does not change the function.

    Frozen parts, and parts with frozen batch norms, train when they become binary: running statistics that match no
    data would make a sign constant.

    Args:
        model: Any model; it is changed in place.
        policy: The rules, see :class:`mmgroupnet.converters.policy.Rule`.

    Returns:
        The model. :func:`mmgroupnet.converters.binarization_of` reports the changes.

    Raises:
        UserError: If the policy is malformed, a rule selects nothing, or rules contradict each other, see
            :func:`mmgroupnet.converters.policy.decide`.
    """
    rules = parse_policy(policy)
    decisions = decide(model, rules)
    float_names = list(model.state_dict())
    report = Binarization([RuleMatches(rule) for rule in rules])
    for block, index in decisions.blocks.items():
        report.rules[index].blocks.append(block)
    for decision in decisions.layers:
        if decision.problem is not None:
            report.problems[decision.names[0]] = decision.problem
        elif decision.rule is None:
            report.unmatched.append(decision.names[0])
        else:
            report.rules[decision.rule].layers.append(decision.names[0])

    renamed = _build_chains(model, decisions.blocks, rules)
    for decision in decisions.layers:
        if decision.problem is None and decision.rule is not None and rules[decision.rule].become != 'keep':
            _swap(model, decision, rules[decision.rule], renamed)
    report.notes = _unfreeze(model) + _bad_starts(model, decisions, renamed)
    guard_foreign_code(model)

    names = set(model.state_dict())
    targets = {name: [_inside_skip(model, each) for each in _targets(name, renamed)] for name in float_names}
    report.dropped_tensors = [name for name, found in targets.items() if not names.issuperset(found)]
    report.new_tensors = sorted(names.difference(*targets.values()))
    note_binarization(model, report)
    return model


def _build_chains(model: nn.Module, blocks: Mapping[str, int], rules: Sequence[Rule]) -> dict[str, list[str]]:
    """Replaces blocks by chains.

    Returns:
        The new names of a block's branches, by the block's old name.
    """
    renamed: dict[str, list[str]] = {}
    prefixes = {id(module): f'{name}.' if name else '' for name, module in model.named_modules()}
    for parent, names, index in list(iterate_chains(model, blocks)):
        rule = rules[index]
        assert rule.num_bases is not None  # every groupwise rule has it
        chain = GroupwiseChain([getattr(parent, name) for name in names], rule.num_bases, rule.gates)
        first = next(chain.blocks[0].parameters(), None)
        if first is not None:
            chain.to(device=first.device, dtype=first.dtype)
        prefix = prefixes[id(parent)]
        for position, name in enumerate(names):
            at = f'{prefix}{names[0]}.blocks.{position}.branches.'
            renamed[prefix + name] = [f'{at}{branch}' for branch in range(rule.num_bases)]
            if position > 0:
                delattr(parent, name)
        setattr(parent, names[0], chain.train(parent.training))
    return renamed


def _targets(name: str, renamed: Mapping[str, list[str]]) -> list[str]:
    """The names of a module or tensor of the float model in the binary model."""
    for block, branches in renamed.items():
        if name.startswith(f'{block}.'):
            return [branch + name[len(block) :] for branch in branches]
    return [name]


def _inside_skip(model: nn.Module, name: str) -> str:
    """The name of a layer's tensor; the layer may be inside a skip."""
    layer, _, tensor = name.rpartition('.')
    is_around = layer and isinstance(model.get_submodule(layer), RealValuedSkip)
    return f'{layer}.module.{tensor}' if is_around else name


def _swap(model: nn.Module, decision: Decision, rule: Rule, renamed: Mapping[str, list[str]]) -> None:
    """Replaces the layer of a decision, or its copies in the branches, by binary layers."""
    twins: dict[int, nn.Module] = {}
    for name in decision.names:
        for branch, target in enumerate(_targets(name, renamed)):
            parent_name, _, child = target.rpartition('.')
            parent = model.get_submodule(parent_name)
            layer = getattr(parent, child)
            if isinstance(layer, BinaryConv2d | RealValuedSkip):
                continue  # The parent itself has two names and is done already.
            if id(layer) not in twins:
                twin = _binary_twin(layer, rule, is_first=branch == 0)
                twins[id(layer)] = RealValuedSkip(twin) if rule.skip and _keeps_shape(twin) else twin
            setattr(parent, child, twins[id(layer)])


def _keeps_shape(conv: BinaryConv2d) -> bool:
    """Whether the output has the shape of the input, for any input."""
    if conv.in_channels != conv.out_channels or conv.stride != (1, 1):
        return False
    return isinstance(conv.padding, str) or all(  # the only string is 'same'
        2 * padding == conv.dilation * (size - 1) for padding, size in zip(conv.padding, conv.kernel_size, strict=True)
    )


def _input_norm(cfg: Mapping | None, channels: int, group_size: int = 1) -> dict | None:
    """The norm in front of a sign. The number of groups of a group norm divides the channels, and each group has at
    least ``group_size`` channels if there are enough."""
    if cfg is None or cfg.get('type') != 'GN':
        return None if cfg is None else dict(cfg)
    largest = math.gcd(cfg['num_groups'], channels)
    fitting = (n for n in range(largest, 1, -1) if largest % n == 0 and channels // n >= group_size)
    return dict(cfg, num_groups=next(fitting, 1))


def _binary_twin(layer: nn.Conv2d | nn.Linear, rule: Rule, is_first: bool) -> BinaryConv2d:
    """The binary layer that replaces a float one, with its weights."""
    is_layerwise = rule.become == 'layerwise'
    options = dict(rule.binary_cfg, bias=layer.bias is not None)
    if is_layerwise:
        options['num_bases'] = rule.num_bases
    if isinstance(layer, nn.Linear):
        linear = LayerwiseBinaryLinear if is_layerwise else BinaryLinear
        norm = _input_norm(rule.input_norm, layer.in_features, _LINEAR_GROUP_SIZE)
        twin: BinaryConv2d = linear(layer.in_features, layer.out_features, input_norm=norm, **options)
    else:
        conv = LayerwiseBinaryConv2d if is_layerwise else BinaryConv2d
        twin = conv(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=0 if layer.padding == 'valid' else layer.padding,
            dilation=layer.dilation[0],
            groups=layer.groups,
            input_norm=_input_norm(rule.input_norm, layer.in_channels),
            **options,
        )
    twin.to(layer.weight)
    twin.train(layer.training)
    if layer.weight.is_meta:
        return twin
    with torch.no_grad():
        weight = layer.weight.view(len(layer.weight), -1, *twin.kernel_size)
        if is_layerwise:
            _start_bases(twin, weight)
        else:
            twin.weight.copy_(branch_weight(weight, is_first))
            twin.start_quantizer()
        if layer.bias is not None and twin.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


def _start_bases(twin: BinaryConv2d, weight: Tensor) -> None:
    """Sets the latent weights and the quantizer of a layer-wise layer, given the weights of the float layer."""
    bases = (twin.num_bases, *weight.shape)
    drawn = twin.weight.clone()
    # A learned scale starts at the mean of |W|, or with several bases at twice that mean, as far as fit_bases spreads
    # them. A channel of zeros has the scale of drawn weights, the same for all bases, so that they may cancel: with a
    # scale of zero, its bases would be equal.
    start = (1 if twin.num_bases == 1 else 2) * weight.expand(bases)
    has_weights = weight.flatten(1).any(1).view(-1, 1, 1, 1)
    twin.weight.copy_(start.where(has_weights, drawn.view(bases)[:1]).flatten(0, 1))
    twin.start_quantizer()
    twin.weight.copy_(fit_bases(weight, drawn, twin.weight_quantizer))


def _unfreeze(model: nn.Module) -> list[str]:
    """Unfreezes parts with binary layers: all of a part that one of its switches had frozen, and the batch norms of
    others. A parameter that is fixed for another reason, such as the position embedding of an MAE, stays fixed.

    Returns:
        Notes on the changes.

    Raises:
        UserError: If a binary layer would still not train.
    """
    notes = []
    switches = dict(frozen_stages=-1, norm_eval=False, bn_eval=False, bn_frozen=False)
    for name, module in model.named_modules():
        owned = [key for key in switches if isinstance(getattr(module, key, None), int)]  # a bool is an int
        if not owned or not any(isinstance(part, BinaryConv2d) for part in module.modules()):
            continue
        freezing = [key for key in owned if getattr(module, key) != switches[key]]
        for key in freezing:
            value, free = getattr(module, key), switches[key]
            setattr(module, key, free)
            notes.append(f'{name}.{key}: {value} becomes {free}, since its binary layers train'.removeprefix('.'))
        parts = [module] if freezing else [part for part in module.modules() if isinstance(part, _BatchNorm)]
        frozen = [parameter for part in parts for parameter in part.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        if frozen:
            notes.append(f'{len(frozen)} frozen parameters of {name or "the model"} train')
    was_training = model.training
    model.train()
    for name, module in model.named_modules():
        trains = all(part.training for part in module.modules())  # with the norm in front of its sign
        if isinstance(module, BinaryConv2d) and not (module.weight.requires_grad and trains):
            raise UserError(f'{name} is frozen by a part of the model, and a binary layer has to train')
    model.train(was_training)
    return notes


def _bad_starts(model: nn.Module, decisions: Decisions, renamed: Mapping[str, list[str]]) -> list[str]:
    """Notes on layers and blocks of zeros that cannot have different bases and keep their function, too."""
    notes, rules = [], decisions.rules
    for decision in decisions.layers:
        twins = [model.get_submodule(name) for name in _targets(decision.names[0], renamed)]
        twins = [twin.module if isinstance(twin, RealValuedSkip) else twin for twin in twins]
        if isinstance(twins[0], BinaryConv2d) and _is_zero(decision.layer):
            with torch.no_grad():
                largest = max(twin.effective_weight().abs().max().item() for twin in twins)
            if largest > _SMALL:
                notes.append(
                    f'{decision.names[0]} is zero in the float model, and starts with weights of {largest:.2g}, since '
                    'its quantizer has no smaller ones'
                )
    for block, index in decisions.blocks.items():
        layers = [
            decision.layer
            for decision in decisions.layers
            if decision.rule == index and decision.problem is None and decision.names[0].startswith(f'{block}.')
        ]
        if (rules[index].num_bases or 1) > 1 and layers and all(map(_is_zero, layers)):
            notes.append(f'{block} holds nothing but zeros in the float model: its branches start almost equal')
    return notes


def _is_zero(layer: nn.Module) -> bool:
    return not layer.weight.is_meta and not layer.weight.any()
