"""Follows the guides for contributors literally in a copy of this checkout."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import documents
from tests.documents import COMMANDS, PAGES, ROOT

GUIDES = [page for page in PAGES if page.startswith('docs/guides/') and not page.endswith('index.md')]
_ROW = re.compile(r'^\| `(.+)` \| (\d+) \| (\d+) \|$', re.MULTILINE)


def run(command: Sequence[str], folder: Path, **options) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **options)
    assert done.returncode == 0, f'{command}: {done.stdout[-3000:]} {done.stderr[-3000:]}'
    return done.stdout


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with the files of this checkout, including uncommitted changes, and its compiled kernels."""
    if not (ROOT / '.git').exists():
        pytest.skip('this folder is not a git checkout')
    for name in run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], ROOT).split('\0'):
        if name and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    for library in (ROOT / 'mmgroupnet/ops').glob('*.so'):
        shutil.copy2(library, tmp_path / 'mmgroupnet/ops')
    run(['git', 'init', '--quiet'], tmp_path)
    run(['git', 'add', '--all'], tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('page', GUIDES)
def test_a_guide_works_and_touches_what_it_says(page, checkout):
    if page.endswith('instruction_set.md') and (platform.machine() != 'x86_64' or shutil.which('g++') is None):
        pytest.skip('the example of this guide needs an x86-64 machine and g++')
    for block in documents.blocks(page):
        if block.file:
            (checkout / block.file).write_text(block.code)
        elif block.language == 'diff':
            # The guides' hunks may have no context lines.
            run(['git', 'apply', '--unidiff-zero', '-'], checkout, input=block.code)
        elif block.language == COMMANDS:
            for words in documents.commands(block.code):
                run_command(words, checkout)
    run(['git', 'add', '--all', '--intent-to-add'], checkout)
    changes = [line.split('\t') for line in run(['git', 'diff', '--numstat'], checkout).splitlines()]
    touched = {name: (added, removed) for added, removed, name in changes if not name.endswith('.svg')}
    said = {name: (added, removed) for name, added, removed in _ROW.findall((ROOT / page).read_text())}
    assert touched == said


def run_command(words: Sequence[str], checkout: Path) -> None:
    """Runs a command with the tests' Python and the packages of the copy."""
    settings = [word for word in words if re.fullmatch(r'[A-Z_]+=.*', word)]
    program, *arguments = words[len(settings) :]
    assert program == 'python', words
    path = os.pathsep.join([str(checkout), str(checkout / 'runtime/src')])
    environment = {**os.environ, 'PYTHONPATH': path, **dict(setting.split('=', 1) for setting in settings)}
    run([sys.executable, *arguments], checkout, env=environment)


@pytest.mark.parametrize('page', GUIDES)
def test_a_guide_stays_in_the_rooms_of_the_architecture(page):
    """The sources that a guide changes are in one room of docs/architecture.md; all others are tests, documents or
    setup.py."""
    rooms = set(re.findall(r'^\| `([\w/]+)`', (ROOT / 'docs/architecture.md').read_text(), re.MULTILINE))
    touched = [name for name, _, _ in _ROW.findall((ROOT / page).read_text())]
    sources = [name for name in touched if name.startswith(('mmgroupnet/', 'csrc/'))]
    assert sources
    assert any(all(name.startswith(f'{room}/') for name in sources) for room in rooms)
    assert {name.split('/')[0] for name in set(touched) - set(sources)} <= {'tests', 'docs', 'setup.py'}
