"""The error that a user can fix."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An error the user can fix: the message says what is wrong, where, and what is allowed.

    The tools print it as one line. No other exception is ever shown without its traceback.
    """


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns a hint for a misspelt name, ``" (did you mean 'depth'?)"``, or '' where nothing comes near."""
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return f' (did you mean {matches[0]!r}?)' if matches else ''
