"""The error that a user can fix."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error the user can fix: the message says what is wrong, where, and what is allowed.

    The tools print it as one line. No other exception is ever shown without its traceback.
    """


# A likeness at which a name is more probably misspelt than another one, as 'num_base' of 'num_bases'.
ONE_SLIP = 0.85


def nearest(name: str, allowed: Iterable[str], likeness: float = 0.6) -> str:
    """Returns a hint for a misspelt name, ``" (did you mean 'depth'?)"``, or '' where nothing comes near.

    Args:
        name: The name.
        allowed: What it may have meant.
        likeness: How near that must come, between 0 and 1. Default: 0.6.
    """
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=likeness)
    return f' (did you mean {matches[0]!r}?)' if matches else ''
