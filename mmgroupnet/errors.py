"""The error that a user can fix."""

import difflib
import traceback
from collections.abc import Iterable

# Characters of another exception's text in an error of ours.
_LONGEST_TEXT = 400


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


def summary(error: BaseException) -> str:
    """Returns any exception as one line: that of a :class:`UserError` is its message; others get their type, and where
    they have no text, such as an ``assert``, the line that raised them."""
    if isinstance(error, UserError):
        return str(error)
    text = ' '.join(str(error).split())
    if not text:
        *_, (frame, number) = traceback.walk_tb(error.__traceback__)
        code = traceback.extract_tb(error.__traceback__)[-1].line
        text = f'`{code}` ({frame.f_globals.get("__name__")}, line {number})'
    return f'{type(error).__name__}: {text[:_LONGEST_TEXT]}' + ('...' if len(text) > _LONGEST_TEXT else '')
