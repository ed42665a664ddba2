"""Finds out whether a class overrides methods of its library."""

from collections.abc import Sequence


def differing(part: object, methods: Sequence[str], source: type) -> list[str]:
    """Names of the methods that a part does not take from a class.

    Args:
        part: A model or a part of one.
        methods: Names of methods.
        source: The class from which the methods should come.
    """

    def is_own(name: str) -> bool:
        return getattr(getattr(part, name, None), '__func__', None) is not getattr(source, name)

    return [name for name in methods if is_own(name)]
