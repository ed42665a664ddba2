"""Whether a checkpoint holds the weights of a model."""

from collections.abc import Mapping

from torch import Tensor, nn

from mmgroupnet.checkpoints.read import weights_of
from mmgroupnet.errors import UserError

# How many keys an error lists before it only counts them.
_LISTED_KEYS = 8


def listing(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    rest = len(keys) - _LISTED_KEYS
    return ', '.join(keys[:_LISTED_KEYS]) + (f' and {rest} more' if rest > 0 else '')


def describe_mismatch(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """What keeps a state dict from being that of a module: names that are missing (other than
    ``num_batches_tracked``), unexpected, or of another shape; '' where nothing does."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state_dict and not key.endswith('num_batches_tracked')]
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
    """Checks that a checkpoint holds the weights of this very architecture.

    Args:
        model: The model, neither wrapped for distribution nor for test-time augmentation.
        checkpoint: What the file holds: a dict with a ``state_dict``, or the state dict itself.
        source: The file's name, for the error.

    Raises:
        UserError: If keys are missing (other than ``num_batches_tracked``), unexpected, or of another shape.
    """
    mismatch = describe_mismatch(model, weights_of(checkpoint))
    if mismatch:
        raise UserError(f'checkpoint {source} is of another architecture than the config ({mismatch})')
