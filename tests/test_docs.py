"""The documents match this checkout: their code runs, their command lines can be parsed, and their links exist."""

import argparse
import ast
import contextlib
import copy
import importlib
import inspect
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmgroupnet import quantizers, register_all_modules
from mmgroupnet.converters.policy import parse_policy
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config, resolve_type
from mmgroupnet.engine.overrides import check_overrides
from mmgroupnet.quantizers import SignActivation, SignWeight
from mmgroupnet.registry import MODELS
from tests import documents
from tests.documents import COMMANDS, FOR_READING, PAGES, PYTHON, ROOT, Block

BLOCKS = [block for page in PAGES for block in documents.blocks(page)]
# Files that the guides create; tests/test_guides.py follows the guides.
MADE = {block.file for block in BLOCKS if block.file}
# Programs of other projects.
FOREIGN = set('apt-get cd cmake curl export git ln mkdir mim mv pre-commit scp ssh unzip'.split())
FOREIGN_MODULES = {'pip', 'venv', 'pytest', 'build', 'torch.distributed.run'}
NUMBER = re.compile(r'(?<![\w#])-?\d+(?:\.\d+)?')
OTHER_NAMES = {'mmgroupnet.threads'}  # a configuration entry of an ONNX Runtime session
# Positional arguments of the scripts that launch several processes, in front of the options of their tool.
LAUNCHERS = {
    'tools/dist_train.sh': ('tools/train.py', ('CONFIG', 'PROCESSES')),
    'tools/dist_test.sh': ('tools/test.py', ('CONFIG', 'CHECKPOINT', 'PROCESSES')),
    'tools/slurm_train.sh': ('tools/train.py', ('PARTITION', 'JOB_NAME', 'CONFIG', 'WORK_DIR')),
}
FOLDERS = ('benchmarks', 'configs', 'csrc', 'demo', 'docs', 'mmgroupnet', 'requirements', 'runtime', 'tests', 'tools')


def name_of(block: Block) -> str:
    return f'{block.page}:{block.line}'


def of_language(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_every_block_says_what_it_holds():
    allowed = {COMMANDS, PYTHON, *FOR_READING}
    unknown = {name_of(block): block.language for block in BLOCKS if block.language not in allowed}
    assert not unknown, f'write one of {sorted(allowed)} behind the three backticks'


# Python


@pytest.mark.parametrize('page', sorted({block.page for block in of_language(PYTHON) if not block.file}))
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other in the same session."""
    monkeypatch.chdir(tmp_path)
    register_all_modules(init_default_scope=False)
    registered = dict(MODELS.module_dict)
    for name, kind in registered.items():
        if not kind.__module__.startswith('mmgroupnet.'):  # of other tests, which may use the same names as this page
            del MODELS.module_dict[name]
    namespace: dict[str, object] = {}
    if page in FILES:
        FILES[page](tmp_path)
    try:
        with DefaultScope.overwrite_default_scope('mmengine'):
            for block in documents.blocks(page):
                if block.language == PYTHON and not (block.reason or block.file):
                    run_block(block, namespace, tmp_path)
    finally:
        MODELS.module_dict.clear()
        MODELS.module_dict.update(registered)


def run_block(block: Block, namespace: dict[str, object], folder: Path) -> None:
    code = ast.parse(block.code)
    if all(isinstance(statement, ast.Assign) for statement in code.body):
        read_config_block(block, folder)
        return
    ast.increment_lineno(code, block.line)
    exec(compile(code, ROOT / block.page, 'exec'), namespace)


def read_config_block(block: Block, folder: Path) -> None:
    """Loads a config, checks its arguments, and builds its model on the meta device."""
    configs = folder / 'configs'
    if not configs.exists():
        configs.mkdir()
        for path in (ROOT / 'configs').iterdir():
            (configs / path.name).symlink_to(path)
        (configs / 'mine').mkdir()
    # In a new folder next to ours, or in the root of the checkout if the config inherits from `configs/...`.
    path = (folder if "'configs/" in block.code else configs / 'mine') / f'line_{block.line}.py'
    path.write_text(block.code)
    cfg = load_config(str(path))
    check_arguments(cfg)
    if 'policy' in cfg:
        parse_policy(cfg.to_dict()['policy'])
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        for name in ('model', 'backbone'):
            if 'type' in (cfg.get(name) or {}):
                MODELS.build(cfg[name])


def prepare_checkpoints(folder: Path) -> None:
    """A small checkpoint in the authors' format."""
    from tests.official import FAMILIES, official_state_dict

    state_dict = official_state_dict(FAMILIES['r18-scales-gates'], dtype=torch.float32)
    torch.save(dict(state_dict=state_dict), folder / 'resnet18_with_scales_with_softgates.pth.tar')


def prepare_device(folder: Path) -> None:
    """A small detector and a picture."""
    import cv2
    import numpy as np

    from tests.onnx_models import DETECTOR, write_onnx

    write_onnx(folder / 'model.onnx', DETECTOR, 'detection')
    cv2.imwrite(str(folder / 'picture.jpg'), np.zeros((48, 64, 3), np.uint8))


# Functions that write the files which the code of a page opens.
FILES: dict[str, Callable[[Path], None]] = {
    'docs/checkpoints.md': prepare_checkpoints,
    'docs/deployment.md': prepare_device,
}


# Commands


@pytest.mark.parametrize('block', of_language(COMMANDS), ids=name_of)
def test_commands_are_understood(block):
    for words in documents.commands(block.code):
        check_command(*words)


@pytest.mark.parametrize('page', PAGES)
def test_commands_in_the_text_are_understood(page):
    for _, token in documents.inline(page, 'code_inline'):
        if re.match(r'(python|make|mmgroupnet|tools/\w+\.sh|mmgroupnet-run) \S', token.content):
            for words in documents.commands(token.content):
                # A program without options is only mentioned; it is not a command line.
                if re.fullmatch(r'python tools/\S+', token.content):
                    assert (ROOT / words[1]).is_file(), f'{page}: {words[1]} does not exist'
                else:
                    check_command(*words)


@cache  # Many commands are on several pages.
def check_command(*words: str) -> None:
    """Checks one command line as far as that is possible without running it."""
    while words and re.fullmatch(r'\w+=.*', words[0]):
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    name = Path(program).name
    if program.startswith('tools/'):
        assert os.access(ROOT / program, os.X_OK), program
        tool, places = LAUNCHERS[program]
        values = dict(zip(places, arguments, strict=False))
        assert len(values) == len(places), f'{words}: give {places}'
        kept = [values[place] for place in places if place in ('CONFIG', 'CHECKPOINT')]
        check_script(tool, kept + arguments[len(places) :])
    elif name in ('python', 'python3'):
        check_python(arguments)
    elif name == 'make':
        targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
        assert {word for word in arguments if '=' not in word} <= targets, words
    elif name == 'mmgroupnet-run':
        check_arguments_of('mmgroupnet-run', importlib.import_module('mmgroupnet_runtime.cli').main, arguments)
    elif name == 'torchrun':
        check_python(arguments[arguments.index('-m') :])
    elif name == 'mmgroupnet':
        check_python(['-m', 'mmgroupnet', *arguments])
    elif name == 'pip':
        check_pip(arguments)
    elif name == 'source':
        assert arguments == ['.venv/bin/activate'], words
    else:
        assert name in FOREIGN, f'{words}: unknown program {name}'


def check_python(arguments: list[str]) -> None:
    first, *rest = arguments
    if first == '-c':
        tree = ast.parse(rest[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), rest[0]
    elif first == '-m' and rest[0] == 'pip':
        check_pip(rest[1:])
    elif first == '-m' and rest[0] == 'mmgroupnet':
        check_console(rest[1:])
    elif first == '-m':
        assert rest[0] in FOREIGN_MODULES, f'{arguments}: unknown module {rest[0]}'
    else:
        check_script(first, rest)


def check_console(arguments: list[str]) -> None:
    console = importlib.import_module('mmgroupnet.__main__')
    if not arguments or arguments[0] in ('--help', '--version'):
        return
    assert arguments[0] in console.COMMANDS, arguments
    if arguments[1:] and arguments[1:] != ['--help']:
        check_arguments_of('mmgroupnet', console.main, arguments)


def check_pip(arguments: list[str]) -> None:
    """Extras and files of requirements exist."""
    extras = set(re.findall(r"'(\w+)'", re.search(r'EXTRAS = \(.*?\)', (ROOT / 'setup.py').read_text(), re.S)[0]))
    for word in arguments:
        extra = re.fullmatch(r'(?:\.|mmgroupnet)\[(.+)\]', word)
        assert not extra or set(extra[1].split(',')) <= extras | {'all'}, word
        assert not word.startswith('requirements/') or (ROOT / word).is_file(), word


def check_script(script: str, arguments: list[str]) -> None:
    """A script of the checkout exists and can parse this command line."""
    path = ROOT / script
    assert path.is_file(), f'{script} does not exist'
    if 'ArgumentParser' in path.read_text() or script.startswith('demo/'):
        check_arguments_of(script, lambda: runpy.run_path(str(path), run_name='__main__'), arguments)


class _Parsed(BaseException):
    """Ends a program after it has parsed its command line."""


def check_arguments_of(name: str, program: Callable[[], object], arguments: list[str]) -> None:
    """Runs a program only until it has parsed its command line."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, given=None, namespace=None) -> None:
        raise _Parsed(parse(parser, given, namespace))

    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(sys, 'argv', [name, *arguments])
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
        try:
            program()
        except _Parsed as parsed:
            check_values(parsed.args[0])
        except SystemExit as refused:
            pytest.fail(f'{name} {arguments}: {said.getvalue()} ({refused})')
        else:
            pytest.fail(f'{name} {arguments}: it does not parse its command line')
    sys.path[:] = path


@cache
def load(config: str) -> Config:
    return load_config(config if '::' in config else str(ROOT / config))


def check_values(args: argparse.Namespace) -> None:
    """The configs and policies in a command line exist, and the configs have the overridden settings."""
    config = getattr(args, 'config', None)
    if config and (config.startswith('configs/') or '::' in config):
        cfg = load(config)
        if args.cfg_options:
            cfg = copy.deepcopy(cfg)
            cfg.merge_from_dict(check_overrides(cfg, args.cfg_options))
            check_arguments(cfg)
    policy = getattr(args, 'binarize', None)
    assert not policy or not policy.startswith('configs/') or (ROOT / policy).is_file(), policy


# Links and names


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files_and_headings(page):
    for line, link in documents.links(page):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), f'{page}:{line}: {link} leads to no file'
        if anchor:
            target = str(target.resolve().relative_to(ROOT))
            assert anchor in documents.anchors(target), f'{page}:{line}: {target} has no heading {anchor}'


@pytest.mark.parametrize('page', PAGES)
def test_files_and_names_that_the_text_mentions_exist(page):
    for line, token in documents.inline(page, 'code_inline'):
        text = token.content
        if re.fullmatch(rf'({"|".join(FOLDERS)})/[\w./-]+', text) and '.' in Path(text).name:
            assert text in MADE or (ROOT / text).exists(), f'{page}:{line}: {text} does not exist'
        elif re.fullmatch(r'mmgroupnet(\.\w\w+)+(\(.*\))?', text) and text not in OTHER_NAMES:
            name = text.partition('(')[0]
            assert resolve_type(name, 'mmgroupnet') or find_name(name), f'{page}:{line}: {name} does not exist'


def find_name(name: str) -> bool:
    """Whether a dotted name is that of a module or of an attribute in one."""
    parts = name.split('.')
    for end in range(len(parts), 0, -1):
        module = '.'.join(parts[:end])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


# The site


def test_plots_are_those_of_the_quantizers(tmp_path):
    """Numbers may differ slightly, since other processors round differently."""
    from docs import plots

    plots.draw_all(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in plots.FOLDER.iterdir()), 'run `python docs/plots.py`'
    for name in drawn:
        new, committed = ((folder / name).read_text() for folder in (tmp_path, plots.FOLDER))
        assert NUMBER.sub('', new) == NUMBER.sub('', committed), f'{name}: run `python docs/plots.py`'
        assert [*map(float, NUMBER.findall(new))] == pytest.approx([*map(float, NUMBER.findall(committed))], abs=0.02)


def test_every_quantizer_has_a_plot():
    from docs import plots

    shipped = {
        name
        for name in quantizers.__all__
        if inspect.isclass(getattr(quantizers, name))
        and issubclass(getattr(quantizers, name), SignActivation | SignWeight)
        and not inspect.isabstract(getattr(quantizers, name))
    }
    assert {*plots.SIGNS, *plots.WEIGHTS} == shipped
    text = (ROOT / 'docs/quantizers.md').read_text()
    assert {name for name in shipped if f'(images/quantizers/{name}.svg)' in text} == shipped


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip('sphinx', reason='Sphinx is not installed: pip install --no-deps -r requirements/docs.txt')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-c', 'docs', '.', str(tmp_path / 'html')]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {str(path.relative_to(tmp_path / 'html').with_suffix('.md')) for path in tmp_path.glob('html/**/*.html')}
    assert set(PAGES) <= pages
    assert 'class mmgroupnet' in re.sub('<[^>]+>', '', (tmp_path / 'html/docs/reference/layers.html').read_text())
