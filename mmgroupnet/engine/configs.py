"""Finds, loads and writes configs, and finds the classes that they name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.registry import Registry

from mmgroupnet.engine.variables import check_variables
from mmgroupnet.errors import UserError, nearest
from mmgroupnet.shipped_files import shipped
from mmgroupnet.type_names import ROOTS, name_types

_PREFIX = 'mmgroupnet::'


def find_config(name: str, kind: str = 'config') -> Path:
    """Finds a config file.

    Args:
        name: A file, or one of ours as ``mmgroupnet::FOLDER/NAME.py``, with the folder in ``configs/``.
        kind: Its name in errors. Default: 'config'.

    Raises:
        UserError: If there is no such file; the message has the nearest name.
    """
    if name.startswith(_PREFIX):
        folder = shipped('configs')
        path = folder / name.removeprefix(_PREFIX)
        others = [f'{_PREFIX}{file.relative_to(folder)}' for file in folder.rglob('*.py')]
        # File names are unique, so a name without its folder is enough.
        others = [other for other in others if Path(other).name == path.name] or others
    else:
        path = Path(name)
        others = [str(file) for file in path.parent.glob('*.py')]
    if not path.is_file():
        raise UserError(f'{kind} {name} does not exist{nearest(name, others)}')
    return path


@contextmanager
def _names_in_bases() -> Iterator[list[tuple[Path, Path]]]:
    """Lets a config inherit ours by name, ``_base_ = 'mmgroupnet::...'``, and names the file if a base is missing.

    Gives a list that will hold each file that inherits, with one that it inherits from.

    mmengine accepts the names of a fixed table of libraries. An entry of ours would not work for editable installs,
    whose files mmengine looks for in site-packages, nor for configs outside a folder. Also, mmengine would build parts
    that a config reads from its base, such as ``_base_.model``, in the scope of mmgroupnet, which does not contain the
    parts of mmdet and mmseg.

    The table has mmseg under the name of its distribution, which differs in the maintained fork; under the module's
    name mmengine finds both.
    """
    find, mmseg = Config._get_cfg_path, MODULE2PACKAGE['mmseg']
    bases: list[tuple[Path, Path]] = []

    def find_base(base: str, file: str) -> tuple[str, str | None]:
        try:
            found = (str(find_config(base)), None) if base.startswith(_PREFIX) else find(base, file)
        except (UserError, ValueError, AssertionError, FileNotFoundError, ModuleNotFoundError) as error:
            raise UserError(f'{file}: _base_ {base!r} cannot be found: {error}') from error
        bases.append((Path(file).resolve(), Path(found[0]).resolve()))
        return found

    Config._get_cfg_path, MODULE2PACKAGE['mmseg'] = staticmethod(find_base), 'mmseg'
    try:
        yield bases
    finally:
        Config._get_cfg_path, MODULE2PACKAGE['mmseg'] = staticmethod(find), mmseg


def read_config_file(path: str | Path) -> Config:
    """Reads a config file like mmengine; it may inherit ours by name, ``_base_ = 'mmgroupnet::FOLDER/NAME.py'``.

    Raises:
        UserError: If a file that it inherits from is missing, or the config gives a value to a variable of one of ours
            that nothing would read, see :func:`mmgroupnet.engine.variables.check_variables`.
    """
    try:
        with _names_in_bases() as bases:
            cfg = Config.fromfile(path)
            check_variables(Path(path).resolve(), cfg.to_dict(), tuple(bases), shipped('configs').resolve())
            return cfg
    except FileNotFoundError as error:  # of a base
        raise UserError(f'config {path}: {error}') from error


def load_config(name: str) -> Config:
    """Loads a config and replaces classes in it by their registered names.

    Args:
        name: A file, one of our configs as ``mmgroupnet::detection/fcos_groupnet_r18_bccd.py``, or one of an installed
            OpenMMLab library as ``mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py``.

    Raises:
        UserError: If there is no such file, one that it inherits from is missing, or a variable of the file would not
            be read, see :func:`read_config_file`.
    """
    if '::' in name and not name.startswith(_PREFIX):
        library = name.split('::')[0]
        if find_spec(library) is None:  # mmengine would install it.
            raise UserError(f'config {name}: {library} is not installed')
        try:
            with _names_in_bases():
                cfg = get_config(name)
        except (AssertionError, KeyError, ValueError, FileNotFoundError) as error:
            raise UserError(f'config {name}: no installed OpenMMLab library has it ({error})') from error
    else:
        cfg = read_config_file(find_config(name))
    name_types(cfg)
    return cfg


def write_config(cfg: Config, path: str | Path) -> None:
    """Writes a whole config, with everything that it inherits.

    Args:
        cfg: The config.
        path: The file, ``*.py``; its folder is created.

    Raises:
        UserError: If the file has another ending, or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != '.py':
        raise UserError(f'--out {path}: give a name that ends in .py')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error


def resolve_type(name: str | type | Callable, scope: str | None, roots: Sequence[Registry] = ROOTS) -> Callable | None:
    """Finds the class that a config's ``type`` names.

    Args:
        name: A registered name such as ``'FCOS'`` or ``'mmgroupnet.BinaryFPN'``, or the class itself.
        scope: The config's ``default_scope``.
        roots: Registries of mmengine to look in, with their children. Default: all.

    Returns:
        The class (or function), or None if the name is not registered.
    """
    if not isinstance(name, str):
        return name
    with suppress(ImportError, AttributeError):  # A user's own scope may have no registries.
        import_module(f'{scope}.registry')
    for root in roots:
        # Registry.switch_scope_and_registry would warn if the scope lacks a kind of registry.
        found = root.children.get(scope, root).get(name)
        if found is not None:
            return found
    return None
