"""Whether a checkpoint holds the weights of a model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmgroupnet.checkpoints.read import weights_of
from mmgroupnet.errors import UserError

# A buffer of batch norms; torch counts from zero if an old checkpoint lacks it.
_COUNTER = 'num_batches_tracked'
# Number of keys that an error lists; it only counts further ones.
_LISTED_KEYS = 8


def listing(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    rest = len(keys) - _LISTED_KEYS
    return ', '.join(keys[:_LISTED_KEYS]) + (f' and {rest} more' if rest > 0 else '')


def describe_mismatch(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """The differences between a state dict and that of a module: names that are missing (other than
    ``num_batches_tracked``), unexpected, or of another shape; '' if there are none."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state_dict and not key.endswith(_COUNTER)]
    unexpected = [key for key in state_dict if key not in wanted]
    other_shape = [
        f'{key} {tuple(state_dict[key].shape)} instead of {tuple(value.shape)}'
        for key, value in wanted.items()
        if isinstance(value, Tensor)
        and isinstance(state_dict.get(key), Tensor)
        and state_dict[key].shape != value.shape
    ]
    problems = {'missing': missing, 'unexpected': unexpected, 'of another shape': other_shape}
    return '; '.join(f'{len(keys)} {kind}: {listing(keys)}' for kind, keys in problems.items() if keys)


def check_state_dict(model: nn.Module, checkpoint: Mapping, source: str) -> None:
    """Checks that a checkpoint holds the weights of exactly this architecture.

    Args:
        model: The model, neither wrapped for distribution nor for test-time augmentation.
        checkpoint: Content of the file: a dict with a ``state_dict``, or the state dict itself.
        source: The file's name, for the error.

    Raises:
        UserError: If keys are missing (other than ``num_batches_tracked``), unexpected, or of another shape.
    """
    mismatch = describe_mismatch(model, weights_of(checkpoint))
    if mismatch:
        raise UserError(f'checkpoint {source} is of another architecture than the config ({mismatch})')


@dataclass(frozen=True)
class Transfer:
    """The tensors that a model takes from a checkpoint, and the others.

    Args:
        taken: Names of the model's tensors that come from the checkpoint (without ``num_batches_tracked``).
        misshaped: Names that both have, but with different shapes, and these shapes; the tensors are dropped.
        unknown: Names that the model has no place for; the tensors are dropped.
        new: Names that the checkpoint lacks; the model keeps its own tensors.
    """

    taken: list[str]
    misshaped: dict[str, str]
    unknown: list[str]
    new: list[str]

    def is_whole(self) -> bool:
        """Whether the checkpoint fits the model exactly."""
        return not (self.misshaped or self.unknown or self.new)

    def table(self) -> str:
        """Counts by part of the model, and the names of dropped and new tensors."""
        columns = [self.taken, [*self.misshaped, *self.unknown], [*self.misshaped, *self.new]]
        counts = [Counter(name.split('.')[0] for name in names) for names in columns]
        lines = ['| part | taken | dropped | new |', '| --- | --- | --- | --- |']
        for part in sorted(set().union(*counts)):
            lines.append(f'| {part} | {" | ".join(str(count[part]) for count in counts)} |')
        lists = {
            'of another shape': [f'{name} {shapes}' for name, shapes in self.misshaped.items()],
            'not in the model': self.unknown,
            'not in the checkpoint': self.new,
        }
        return '\n'.join(lines + [f'{kind}: {listing(names)}' for kind, names in lists.items() if names])


def load_what_fits(model: nn.Module, checkpoint: Mapping) -> Transfer:
    """Loads the tensors of a checkpoint that fit a model, as mmengine does, and reports which.

    It loads them to find out, since stock models rename and reshape weights of older files while they load them.

    Args:
        model: The model, neither wrapped for distribution nor for test-time augmentation.
        checkpoint: Content of the file: a dict with a ``state_dict``, or the state dict itself.
    """
    own, weights = model.state_dict(), weights_of(checkpoint)
    missing: list[str] = []
    unknown: list[str] = []

    def note(_: nn.Module, keys: Any) -> None:
        missing.extend(keys.missing_keys)
        unknown.extend(keys.unexpected_keys)

    handle = model.register_load_state_dict_post_hook(note)
    refused = ''
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # All fitting tensors are loaded by now, and the hook was called.
        refused = str(error)
    finally:
        handle.remove()
    misshaped = {
        name: f'{tuple(weights[name].shape)} instead of {tuple(value.shape)}' if name in weights else ''
        for name, value in own.items()
        if f'size mismatch for {name}:' in refused
    }
    return Transfer(
        taken=[name for name in own if name not in {*missing, *misshaped} and not name.endswith(_COUNTER)],
        misshaped=misshaped,
        unknown=unknown,
        new=[name for name in missing if not name.endswith(_COUNTER)],
    )
