"""Policies: ordered rules that say which layers of a model become binary, and how.

A policy is a list of dicts, each a :class:`Rule`. The first rule that selects a layer decides it, as in a routing
table, so exceptions go on top.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from mmgroupnet.errors import UserError, nearest
from mmgroupnet.layers import BinaryConv2d, is_as_written

OUTCOMES = ('binary', 'layerwise', 'groupwise', 'keep')
# What ``binary_cfg`` may set; a rule or the float layer decides the other arguments of a binary layer.
_OPTIONS = ['activation', 'weight', 'padding_value', 'memory_efficient']
# Number of names that an error lists; it only counts further ones.
_LISTED = 5


@dataclass(frozen=True)
class Rule:
    """One rule of a policy.

    Args:
        become: What the selected layers become.

            - 'keep': they do not change;
            - 'binary': one binary layer, :class:`BinaryConv2d` or :class:`BinaryLinear`;
            - 'layerwise': a sum of ``num_bases`` binary layers, :class:`LayerwiseBinaryConv2d` or
              :class:`LayerwiseBinaryLinear`;
            - 'groupwise': ``types`` names classes of residual blocks; consecutive blocks in an ``nn.Sequential`` become
              one :class:`GroupwiseChain` of ``num_bases`` branches, whose convs are binary.

        names: Patterns of dotted module names such as ``'backbone.layer?'``; ``*`` stands for anything, including dots.
            A named module is selected with everything inside it. Default: everything.
        types: Names of classes; subclasses match, too. A module of such a class is selected with everything inside it.
            Linear layers become binary only if this names them: ``'Linear'``. Default: any class.
        num_bases: Number K of bases or branches, for 'layerwise' and 'groupwise'.
        gates: For 'groupwise': True for soft gates between the blocks of a chain (Group-Net), False to merge behind
            every block (GBD v1). Default: True.
        input_norm: Norm in front of every sign, because a sign must not see the output of a ReLU; None leaves it out.
            ``num_groups`` of a ``dict(type='GN')`` is lowered to a divisor of the channels. Default:
            ``dict(type='BN')``.
        skip: Adds a real-valued skip around binary layers whose input and output have the same shape:
            :class:`RealValuedSkip`. It changes the function of a float model. The default policy uses it all the same,
            since nothing else bypasses the signs of a stock block. Default: False.
        binary_cfg: Options of the binary layers: ``activation``, ``weight``, ``padding_value``, ``memory_efficient``,
            see :class:`BinaryConv2d`, and for 'layerwise' ``learned_scales``, see :class:`LayerwiseBinaryConv2d`.
            Default: none.
        optional: The rule may select nothing, which is an error otherwise; for policies that serve many models.
            Default: False.

    Raises:
        UserError: If a key is unknown, or has no meaning for this ``become``.
    """

    become: str
    names: tuple[str, ...] = ('*',)
    types: tuple[str, ...] = ()
    num_bases: int | None = None
    gates: bool = True
    input_norm: Mapping | None = field(default_factory=lambda: dict(type='BN'))
    skip: bool = False
    binary_cfg: Mapping = field(default_factory=dict)
    optional: bool = False

    def picks(self, path: Sequence[tuple[str, nn.Module]]) -> bool:
        """Whether the rule selects the last module of a path with everything inside it.

        Args:
            path: Names and modules from the model down to the module.
        """
        if self.types and not self.types_match(path[-1][1]):
            return False
        return any(fnmatchcase(name, pattern) for name, _ in path for pattern in self.names)

    def types_match(self, module: nn.Module) -> bool:
        """Whether the module is of one of the classes."""
        return any(base.__name__ in self.types for base in type(module).__mro__)


def parse_policy(policy: Sequence[Mapping]) -> list[Rule]:
    """Reads the rules of a policy.

    Args:
        policy: The rules as dicts, see :class:`Rule`; ``names`` and ``types`` may be one string.

    Raises:
        UserError: Naming the rule, the key and what is allowed.
    """
    if isinstance(policy, str | Mapping) or not isinstance(policy, Iterable) or not policy:
        raise UserError(f'policy={policy!r}: give a list of rules such as dict(become="keep", names="backbone.conv1")')
    return [_parse_rule(entry, f'policy[{number}]') for number, entry in enumerate(policy)]


def _parse_rule(entry: Mapping, where: str) -> Rule:
    keys = [option.name for option in dataclasses.fields(Rule)]
    if not isinstance(entry, Mapping) or entry.get('become') not in OUTCOMES:
        raise UserError(f'{where}={entry!r}: a rule is a dict whose become is one of {", ".join(OUTCOMES)}')
    become = entry['become']
    for key in entry:
        if key not in keys:
            raise UserError(f'{where}: a rule has no key {key!r}{nearest(str(key), keys)}. Its keys: {", ".join(keys)}')
    idle = dict(
        keep=('num_bases', 'gates', 'input_norm', 'skip', 'binary_cfg'),
        binary=('num_bases', 'gates'),
        layerwise=('gates',),
    ).get(become, ())
    for key in idle:
        if key in entry:
            raise UserError(f'{where}: {key}={entry[key]!r} has no meaning for become={become!r}, leave it out')
    options = [*_OPTIONS, 'learned_scales'] if become == 'layerwise' else _OPTIONS
    for key in entry.get('binary_cfg') or ():
        if key not in options:
            raise UserError(
                f'{where}: binary_cfg has no option {key!r} for become={become!r}. Its options: {", ".join(options)}'
            )
    values = dict(entry)
    for key in ('names', 'types'):
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
        if key in values:
            is_list = isinstance(values[key], list | tuple) and values[key]
            if not is_list or not all(isinstance(name, str) for name in values[key]):
                raise UserError(f'{where}: {key}={values[key]!r}: give a string or a list of strings')
            values[key] = tuple(values[key])
    if become in ('layerwise', 'groupwise'):
        num_bases = values.get('num_bases')
        if not isinstance(num_bases, int) or num_bases < 1:
            raise UserError(f'{where}: num_bases={num_bases!r}: {become} takes a number of bases, an int >= 1')
    if become == 'groupwise' and 'types' not in values:
        raise UserError(f"{where}: groupwise needs the classes of the blocks, such as types=['BasicBlock']")
    return Rule(**values)


@dataclass
class Decision:
    """The decision about a layer.

    Args:
        layer: The layer.
        names: Its dotted names; a layer that is used in several places has several.
        rule: Index of the rule that decides it; None if no rule selects it, so it is kept.
        problem: Why a layer is kept although its rule says otherwise.
    """

    layer: nn.Module
    names: list[str]
    rule: int | None
    problem: str | None = None


@dataclass
class Decisions:
    """The decisions about a model.

    Args:
        rules: The rules.
        layers: All convolutions and linears.
        blocks: Blocks that become groups: name and rule.
    """

    rules: list[Rule]
    layers: list[Decision]
    blocks: dict[str, int]


def decide(model: nn.Module, rules: Sequence[Rule]) -> Decisions:
    """Decides what each layer becomes, without changing the model.

    Args:
        model: The model.
        rules: The rules.

    Raises:
        UserError: If a rule that is not optional selects nothing, or only layers that rules above it have decided; if
            rules contradict each other, in a block that becomes a group or about a layer with two names; or if no layer
            becomes binary.
    """
    paths = _paths(model)
    blocks = _decide_blocks(paths, rules)
    found: dict[int, Decision] = {}
    selecting, deciding = set(blocks.values()), set(blocks.values())
    weights = _weight_users(model)
    for name, path in paths.items():
        layer = path[-1][1]
        if not _has_weights(layer):
            continue
        candidates = [index for index, rule in enumerate(rules) if _selects(rule, path, layer)]
        selecting.update(candidates)
        group = next((index for at, index in blocks.items() if _is_within(name, at)), None)
        index = candidates[0] if candidates else None
        if group is not None:
            index = _decide_in_group(name, candidates, group, rules)
            # A groupwise rule selects the layers inside its blocks; linears are kept.
            if index == group and isinstance(layer, nn.Linear):
                index = None
        if index is not None:
            deciding.add(index)
        if id(layer) in found:
            other = found[id(layer)]
            if other.rule != index:
                raise UserError(
                    f'{other.names[0]} and {name} are one and the same layer, but {_spell(other.rule)} decides the '
                    f'one, {_spell(index)} the other: let one rule select both'
                )
            other.names.append(name)
            continue
        problem = None
        if index is not None and rules[index].become != 'keep':
            problem = _problem(path, weights)
        found[id(layer)] = Decision(layer, [name], index, problem)
    for index, rule in enumerate(rules):
        if index in deciding or rule.optional:
            continue
        if index not in selecting:
            raise UserError(
                f'{_describe(index, rule)} selects no layer of {type(model).__name__}. Its modules: '
                f'{", ".join(name for name, _ in model.named_children())} (a rule of a policy for many models may say '
                'optional=True)'
            )
        raise UserError(
            f'{_describe(index, rule)} contradicts the rules above it, which have decided all that it selects: the '
            'first rule that selects a layer decides it, so put exceptions on top'
        )
    decisions = Decisions(list(rules), list(found.values()), blocks)
    if not any(_becomes_binary(decision, rules) for decision in decisions.layers) and not blocks:
        raise UserError(f'the policy makes no layer of {type(model).__name__} binary{_why_nothing(decisions.layers)}')
    return decisions


def _why_nothing(layers: Sequence[Decision]) -> str:
    """Why a policy makes no layer binary, as the end of a sentence."""
    problems = Counter(decision.problem for decision in layers if decision.problem)
    reasons = [f'{number} selected layers have no binary form, {problem}' for problem, number in problems.items()]
    linears = sum(isinstance(decision.layer, nn.Linear) and decision.rule is None for decision in layers)
    if linears:
        reasons.append(f'no rule selects its linears ({linears}), which types has to name: "Linear"')
    return f' ({"; ".join(reasons)})' if reasons else ''


def _becomes_binary(decision: Decision, rules: Sequence[Rule]) -> bool:
    return decision.rule is not None and decision.problem is None and rules[decision.rule].become != 'keep'


def _paths(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """All modules under all of their names, each with the modules that contain it, the model first."""
    paths: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parent = paths[name.rpartition('.')[0]] if name else []
        paths[name] = [*parent, (name, module)]
    return paths


def _is_within(name: str, ancestor: str) -> bool:
    return name == ancestor or name.startswith(f'{ancestor}.') or not ancestor


def _has_weights(layer: nn.Module) -> bool:
    """Whether a module is a float convolution (of any kind) or a float linear layer."""
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        return True
    return 'DeformConv2d' in _class_names(layer) or 'ModulatedDeformConv2d' in _class_names(layer)


def _class_names(module: nn.Module) -> set[str]:
    return {base.__name__ for base in type(module).__mro__}


def _selects(rule: Rule, path: Sequence[tuple[str, nn.Module]], layer: nn.Module) -> bool:
    """Whether a rule selects a layer directly, not as part of a block."""
    if rule.become == 'groupwise':
        return False
    if isinstance(layer, nn.Linear) and rule.become != 'keep':
        return rule.types_match(layer) and rule.picks(path)
    return any(rule.picks(path[: depth + 1]) for depth in range(len(path)))


def _decide_blocks(paths: Mapping[str, list[tuple[str, nn.Module]]], rules: Sequence[Rule]) -> dict[str, int]:
    """The blocks that become groups, with their rules."""
    blocks: dict[str, int] = {}
    seen: dict[int, str] = {}
    for name, path in paths.items():
        for index, rule in enumerate(rules):
            if rule.become != 'groupwise':
                # A rule that selects a whole block decides it; one that selects layers by their class does not.
                if any(rule.picks(path[: depth + 1]) for depth in range(len(path))):
                    break
                continue
            if not rule.picks(path) or any(isinstance(part, BinaryConv2d) for part in path[-1][1].modules()):
                continue
            around = next((at for at in blocks if _is_within(name, at)), None)
            if around is not None:
                raise UserError(
                    f'{_describe(index, rule)} selects {name} inside {around}, which becomes a group itself: name only '
                    'one of their classes'
                )
            block = path[-1][1]
            if id(block) in seen:
                raise UserError(
                    f'{_describe(index, rule)} selects {name}, which is the same block as {seen[id(block)]}: a shared '
                    'block cannot become a group'
                )
            seen[id(block)] = name
            blocks[name] = index
            break
    return blocks


def _decide_in_group(name: str, candidates: Sequence[int], group: int, rules: Sequence[Rule]) -> int:
    """The rule of a layer inside a block that becomes a group: a ``keep`` above its rule, or that rule."""
    index = next((index for index in candidates if index < group), group)
    if index != group and rules[index].become != 'keep':
        raise UserError(
            f'policy[{index}] makes {name} {rules[index].become}, and policy[{group}] makes the block around it a '
            f'group: the two contradict, put policy[{group}] on top'
        )
    return index


def _weight_users(model: nn.Module) -> dict[int, int]:
    """The number of modules that own each parameter."""
    users: dict[int, int] = defaultdict(int)
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] += 1
    return users


# Layers whose computation is known exactly, unless their forward is overridden.
_PLAIN_LAYERS = (nn.Conv2d, wrappers.Conv2d, nn.Linear, wrappers.Linear)


def _problem(path: Sequence[tuple[str, nn.Module]], weight_users: Mapping[int, int]) -> str | None:
    """Why a layer cannot be expressed as a binary one, or None."""
    layer = path[-1][1]
    for _, module in path:
        names = _class_names(module)
        if 'DeformConv2d' in names or 'ModulatedDeformConv2d' in names:
            return 'deformable'
        if isinstance(module, nn.MultiheadAttention) and module is not layer:
            return 'its weights are used by nn.MultiheadAttention itself'
        if getattr(module, 'efficient_conv_bn_eval_forward', None) is not None:
            return 'its weights are used by efficient_conv_bn_eval of mmcv.cnn.ConvModule'
    if getattr(layer, 'transposed', False):
        return 'transposed'
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return f'{type(layer).__name__} is not 2D'
    if not is_as_written(layer, *_PLAIN_LAYERS):
        return f'{type(layer).__name__} computes something of its own'
    if 'weight' not in layer._parameters or is_parametrized(layer):
        return 'its weight is computed from others'
    if weight_users[id(layer.weight)] > 1:
        return 'another layer has the same weight'
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return 'depthwise'
    if layer.padding_mode != 'zeros':
        return f'padding_mode={layer.padding_mode!r}'
    if len(set(layer.dilation)) > 1:
        return f'dilation={layer.dilation} differs between the axes'
    if layer.padding == 'same' and any(size % 2 == 0 for size in layer.kernel_size):
        return f"padding='same' of kernel_size={layer.kernel_size}"
    return None


def _spell(index: int | None) -> str:
    return 'no rule' if index is None else f'policy[{index}]'


def _describe(index: int, rule: Rule) -> str:
    """The name of a rule in errors."""
    parts = [f'become={rule.become!r}']
    for key in ('names', 'types'):
        values = list(getattr(rule, key))
        if values and values != ['*']:
            rest = f' and {len(values) - _LISTED} more' if len(values) > _LISTED else ''
            parts.append(f'{key}={values[:_LISTED]}{rest}')
    return f'policy[{index}] ({", ".join(parts)})'


def iterate_chains(model: nn.Module, blocks: Mapping[str, int]) -> Iterator[tuple[nn.Module, list[str], int]]:
    """Chains of blocks that become groups.

    Args:
        model: The model.
        blocks: Names of the blocks, with their rules.

    Yields:
        The module that contains the chain, the names of the chain's blocks in it, and their rule. Only consecutive
        blocks in a plain ``nn.Sequential`` are known to be a chain; other blocks are chains of one.
    """
    for name, parent in model.named_modules():
        chain: list[str] = []
        last = -1
        is_sequence = is_as_written(parent, nn.Sequential)
        for child in parent._modules:
            rule = blocks.get(f'{name}.{child}' if name else child)
            if chain and (rule != last or not is_sequence):
                yield parent, chain, last
                chain = []
            if rule is not None:
                chain.append(child)
                last = rule
        if chain:
            yield parent, chain, last
