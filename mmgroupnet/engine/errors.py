"""The error that the tools print as one line."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something that the user can mend. The message says what is wrong, where, and what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns a hint for a misspelt name, ``" (did you mean 'depth'?)"``, or '' where nothing comes near."""
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return f' (did you mean {matches[0]!r}?)' if matches else ''


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints a :class:`UserError` as one message without a traceback and ends the process with status 1."""
    try:
        yield
    except UserError as error:
        # In a distributed run every process prints: a loss may be no number in one of them alone.
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
