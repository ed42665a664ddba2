"""The error that a user can fix."""

import difflib
import traceback
from collections.abc import Iterable

# Number of characters that our error quotes of another exception.
_LONGEST_TEXT = 400


class UserError(ValueError):
    """An error the user can fix: the message says what is wrong, where, and what is allowed.

    The tools print it as one line. No other exception is ever shown without its traceback.
    """


# From this similarity on, a name is more probably misspelt than a different one, like 'num_base' for 'num_bases'.
ONE_SLIP = 0.85


def nearest(name: str, allowed: Iterable[str], likeness: float = 0.6) -> str:
    """Returns a hint for a misspelt name, ``" (did you mean 'depth'?)"``, or '' if no allowed name is similar.

    Args:
        name: The name.
        allowed: The allowed names.
        likeness: The least similarity, between 0 and 1. Default: 0.6.
    """
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=likeness)
    return f' (did you mean {matches[0]!r}?)' if matches else ''


def summary(error: BaseException) -> str:
    """Returns any exception as one line: the message of a :class:`UserError`; for others the type and the text, or, if
    they have no text (such as an ``assert``), the line that raised them."""
    if isinstance(error, UserError):
        return str(error)
    text = ' '.join(str(error).split())
    if not text:
        *_, (frame, number) = traceback.walk_tb(error.__traceback__)
        code = traceback.extract_tb(error.__traceback__)[-1].line
        text = f'`{code}` ({frame.f_globals.get("__name__")}, line {number})'
    return f'{type(error).__name__}: {text[:_LONGEST_TEXT]}' + ('...' if len(text) > _LONGEST_TEXT else '')
