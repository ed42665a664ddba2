"""Finds the configs and the tools; imports neither torch nor any OpenMMLab library."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder of the configs or of the tools.

    An installed package has them in ``.mim``, where setup.py puts them; in a checkout they are beside the package.

    Args:
        name: ``'configs'`` or ``'tools'``.
    """
    installed = _PACKAGE / '.mim' / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
