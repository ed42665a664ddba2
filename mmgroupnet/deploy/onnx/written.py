"""Whether a class computes an answer as its library wrote it."""

from collections.abc import Sequence


def differing(part: object, methods: Sequence[str], source: type) -> list[str]:
    """Names of the methods of a part that are not those of a class.

    Args:
        part: A model or a part of one.
        methods: Names.
        source: The class that the methods should be of.
    """

    def is_own(name: str) -> bool:
        return getattr(getattr(part, name, None), '__func__', None) is not getattr(source, name)

    return [name for name in methods if is_own(name)]
