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
    """The result of one rule of a policy.

    Args:
        rule: The rule.
        layers: Names, in the float model, of the layers that it decided.
        blocks: Names of the blocks, for a groupwise rule.
    """

    rule: Rule
    layers: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)


@dataclass
class Binarization:
    """A report of :func:`mmgroupnet.binarize`, see :func:`binarization_of`; names are those of the float model.

    Args:
        rules: The result of each rule, in the policy's order.
        unmatched: Layers that no rule selects; they are kept.
        problems: Layers that are kept although a rule would make them binary, with the reason.
        notes: Other changes, such as stages that are no longer frozen, and layers that start badly.
        dropped_tensors: Tensors of the float model that have no place in the binary one.
        new_tensors: Tensors of the binary model that the float one lacks: norms in front of signs, gates.
    """

    rules: list[RuleMatches]
    unmatched: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped_tensors: list[str] = field(default_factory=list)
    new_tensors: list[str] = field(default_factory=list)

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
    """Lists names; those that differ only in numbers become one entry with their count."""
    alike = defaultdict(list)
    for name in names:
        alike[re.sub(r'\d+', '*', name)].append(name)
    entries = [found[0] if len(found) == 1 else f'{len(found)} x {pattern}' for pattern, found in alike.items()]
    return f' ({", ".join(entries)})' if entries else ''


# A report lives as long as its model, but is not part of it.
_REPORTS: WeakKeyDictionary[nn.Module, Binarization] = WeakKeyDictionary()


def note_binarization(model: nn.Module, report: Binarization) -> None:
    """Stores the report of a model for :func:`binarization_of`."""
    _REPORTS[model] = report


def binarization_of(model: nn.Module) -> Binarization | None:
    """The report of :func:`mmgroupnet.binarize` for a model; None if this very object was not binarised: copies and
    unpickled models have no report."""
    return _REPORTS.get(model)
