"""Report of a binarisation."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from mmgroupnet.converters.policy import Rule


@dataclass
class RuleMatches:
    """What one rule of a policy did.

    Args:
        rule: The rule.
        layers: Names of the layers that it decided, as they were called in the float model.
        blocks: Of a groupwise rule, names of the blocks.
    """

    rule: Rule
    layers: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)


@dataclass
class Binarization:
    """What :func:`mmgroupnet.binarize` did, see :func:`binarization_of`; names are those of the float model.

    Args:
        rules: What each rule did, in the policy's order.
        unmatched: Layers that no rule selects; they are kept.
        problems: Layers that a rule would make binary and that are kept, with the reason.
        notes: What else was changed, such as stages that are no longer frozen, and layers that start badly.
        dropped_tensors: Tensors of the float model that have no place in the binary one.
        new_tensors: Tensors of the binary model that the float one has not: norms in front of signs, gates.
    """

    rules: list[RuleMatches]
    unmatched: list[str]
    problems: dict[str, str]
    notes: list[str]
    dropped_tensors: list[str]
    new_tensors: list[str]

    def describe(self) -> str:
        """A few lines for a log."""
        lines = []
        for number, matches in enumerate(self.rules):
            rule = matches.rule
            what = rule.become if rule.num_bases is None else f'{rule.become} K={rule.num_bases}'
            names = _listing(matches.blocks or matches.layers)
            blocks = f'{len(matches.blocks)} blocks with ' if matches.blocks else ''
            lines.append(f'policy[{number}] {what}: {blocks}{len(matches.layers)} layers{names}')
        if self.unmatched:
            lines.append(f'kept, no rule selects them: {len(self.unmatched)} layers{_listing(self.unmatched)}')
        reasons = defaultdict(list)
        for name, reason in self.problems.items():
            reasons[reason].append(name)
        lines += [f'kept, {reason}: {len(names)} layers{_listing(names)}' for reason, names in reasons.items()]
        lines += self.notes
        if self.dropped_tensors:
            lines.append(
                f'{len(self.dropped_tensors)} tensors of the float model have no place in the binary one'
                f'{_listing(self.dropped_tensors)}'
            )
        return '\n'.join(lines)


def _listing(names: Sequence[str]) -> str:
    """All of the names; those that differ in their numbers alone are one entry, with how many they are."""
    alike = defaultdict(list)
    for name in names:
        alike[re.sub(r'\d+', '*', name)].append(name)
    entries = [found[0] if len(found) == 1 else f'{len(found)} x {pattern}' for pattern, found in alike.items()]
    return f' ({", ".join(entries)})' if entries else ''


# A report lives as long as its model, and is no part of it.
_REPORTS: WeakKeyDictionary[nn.Module, Binarization] = WeakKeyDictionary()


def note_binarization(model: nn.Module, report: Binarization) -> None:
    """Keeps what was done to a model for :func:`binarization_of`."""
    _REPORTS[model] = report


def binarization_of(model: nn.Module) -> Binarization | None:
    """What :func:`mmgroupnet.binarize` did to a model; None where it did nothing to this very object: copies and
    unpickled models have no report."""
    return _REPORTS.get(model)
