"""The Markdown files of the project: their code blocks, links, anchors and commands."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ('*.md', 'docs/**/*.md', 'configs/*/README.md', 'examples/*/README.md', 'benchmarks/results/*.md')
    for path in ROOT.glob(pattern)
    if '_build' not in path.parts
)
# Languages of code blocks. Commands are checked, Python is run, and the others are not tested.
COMMANDS, PYTHON = 'bash', 'python'
FOR_READING = {'text', 'math', 'cpp', 'yaml', 'diff', '{toctree}', '{eval-rst}'}
_NOT_RUN = re.compile(r'<!-- not run: (.+?) -->', re.DOTALL)
_FILE = re.compile(r'<!-- file: (\S+) -->')


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
        page: The page.
        line: Its first line, counted from 1.
        language: The language behind its backticks.
        code: Its text.
        reason: The reason why it cannot run, from a comment in front of it: ``<!-- not run: REASON -->``.
        file: The path of the file that it shows, from a comment in front of it: ``<!-- file: PATH -->``.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    file: str | None


@cache
def tokens(page: str) -> list[Token]:
    """A page, parsed."""
    return MarkdownIt('commonmark').enable('table').parse((ROOT / page).read_text())


def blocks(page: str) -> Iterator[Block]:
    """The blocks of code of a page."""
    before = ''
    for token in tokens(page):
        if token.type in ('fence', 'code_block'):
            reason, file = _NOT_RUN.search(before), _FILE.search(before)
            language = (token.info.split() or [''])[0] if token.type == 'fence' else 'text'  # indented
            yield Block(page, token.map[0] + 1, language, token.content, reason and reason[1], file and file[1])
        before = token.content if token.type == 'html_block' else ''


def inline(page: str, kind: str) -> Iterator[tuple[int, Token]]:
    """The tokens of a kind (``code_inline``, ``link_open`` or ``image``) in the text of a page, with their lines."""
    for token in tokens(page):
        for child in token.children or ():
            if child.type == kind:
                yield (token.map or [0])[0] + 1, child


def links(page: str) -> Iterator[tuple[int, str]]:
    """The targets of the links and pictures of a page, with their lines."""
    for kind, attribute in (('link_open', 'href'), ('image', 'src')):
        for line, token in inline(page, kind):
            yield line, str(token.attrs[attribute])


@cache
def anchors(page: str) -> set[str]:
    """The anchors that GitHub makes for the headings of a page."""
    found: set[str] = set()
    parsed = tokens(page)
    for heading, content in zip(parsed, parsed[1:], strict=False):
        if heading.type == 'heading_open':
            text = ''.join(child.content for child in content.children or () if child.type in ('text', 'code_inline'))
            slug = re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')
            found.add(next(name for name in _numbered(slug) if name not in found))
    return found


def _numbered(slug: str) -> Iterator[str]:
    yield slug
    yield from (f'{slug}-{number}' for number in range(1, 100))


def commands(script: str) -> Iterator[list[str]]:
    """The commands of a shell script, each as a list of words, with loops unrolled.

    Raises:
        ValueError: If a closing quotation mark is missing.
    """
    lines = script.replace('\\\n', ' ').splitlines()
    while lines:
        line = lines.pop(0).strip()
        loop = re.fullmatch(r'for (\w+) in (.+); do', line)
        if loop:
            end = next(index for index, inner in enumerate(lines) if inner.strip() == 'done')
            body, lines = '\n'.join(lines[:end]), lines[end + 1 :]
            for value in loop[2].split():
                yield from commands(re.sub(rf'\${loop[1]}\b|\${{{loop[1]}}}', value, body))
            continue
        words = shlex.split(line, comments=True)
        while words:
            end = next((index for index, word in enumerate(words) if word in ('&&', '|', ';', '>')), len(words))
            if words[:end]:
                yield words[:end]
            separator = words[end : end + 1]
            words = words[end + 1 :]
            if separator == ['>']:  # the output goes to a file
                words = words[1:]
