"""Builds the documentation: ``make docs``, into docs/_build/html.

The sources are the Markdown files where they lie, with the whole repository as their root, so that a relative link is
right on the site and wherever else the files are read. Nothing is fetched.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from docutils import nodes  # noqa: E402
from docutils.utils.math.latex2mathml import tex2mathml  # noqa: E402
from sphinx.addnodes import pending_xref  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.environment import BuildEnvironment  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

from mmgroupnet.version import __version__  # noqa: E402

project = 'mmgroupnet'
version = release = __version__
root_doc = 'docs/index'
language = 'en'

PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'docs/**.md',
    'configs/*/README.md',
    'examples/*/README.md',
    'benchmarks/results/stock_configs.md',
]
include_patterns = PAGES
# Data sets and environments in the checkout are not walked through.
exclude_patterns = [
    path.name for path in ROOT.iterdir() if path.name not in {pattern.split('/')[0] for pattern in PAGES}
] + ['docs/_build']

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_enable_extensions = ['dollarmath']
myst_fence_as_directive = ['math']
myst_heading_anchors = 4

html_theme = 'furo'
html_title = f'mmgroupnet {__version__}'
html_static_path = ['static']
html_css_files = ['tables.css']
html_extra_path = ['site']  # index.html, which leads to docs/index.html
html_show_sphinx = False
html_copy_source = False

autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False  # Torch's text about forward() says nothing here.
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_math_renderer = 'mathml'

TYPES = 'docs/reference/types'  # the page that is made from the registries


def write_math(translator: object, node: nodes.Element) -> None:
    """Writes a formula as MathML, which browsers draw without a script.

    Raises:
        docutils.utils.math.MathError: If the formula has a command that MathML has no element for.
    """
    is_block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=is_block)
    # Bars would be spaced as operators are, and braces as high as the line's highest sign.
    formula = re.sub(r'<mo[^>]*>\|</mo>', '<mo stretchy="false" lspace="0" rspace="0">|</mo>', formula)
    formula = re.sub(r'<mo>([{}])</mo>', r'<mo stretchy="false">\1</mo>', formula)
    translator.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def mark_paragraphs(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Sets the names of the paragraphs of docstrings that are no sections of napoleon's in bold."""
    lines[:] = [re.sub(r'^(Shape|Source):', r'**\1:**', line) for line in lines]


def drop_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Leaves out the signature of classes that inherit it from ``nn.Module``."""
    return (None if signature == '(*args: Any, **kwargs: Any)' else signature), returned


def find_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element
) -> nodes.reference | None:
    """Links a name of the package that a docstring gives without its module, if it is the only one."""
    if node.get('refdomain') != 'py':
        return None
    objects = env.get_domain('py').objects
    found = [name for name, entry in objects.items() if name.endswith(f'.{node["reftarget"]}') and not entry.aliased]
    if len(found) != 1:
        return None
    page, anchor = objects[found[0]].docname, objects[found[0]].node_id
    return make_refnode(app.builder, node['refdoc'], page, anchor, shown)


def list_types(app: Sphinx, docname: str, source: list[str]) -> None:
    """Writes the table of registered types into the page about them."""
    if docname != TYPES:
        return
    from mmgroupnet import register_all_modules, registry

    register_all_modules(init_default_scope=False)
    tables = []
    for name in registry.__all__:
        types = sorted(getattr(registry, name).module_dict.items())
        rows = [f'| {{py:obj}}`mmgroupnet.{key} <{kind.__name__}>` | {first_line(kind)} |' for key, kind in types]
        tables += [f'## {name}\n\n| type in a config | |\n| --- | --- |', *rows, '']
    source[0] += '\n'.join(tables)


def first_line(kind: type) -> str:
    """The first sentence of a docstring, for Markdown."""
    text = ' '.join((kind.__doc__ or '').split('\n\n')[0].split())
    text = re.sub(r':math:`([^`]+)`', r'$\1$', text)
    text = re.sub(r':\w+:`~?([^`]+)`', r'`\1`', text).replace('``', '`').replace('|', r'\|')
    return re.split(r'(?<=[a-z)`])\. ', text)[0].rstrip('.')


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer('mathml', (write_math, None), (write_math, None))
    # After napoleon, which reads sections.
    app.connect('autodoc-process-docstring', mark_paragraphs, priority=900)
    app.connect('autodoc-process-signature', drop_signature)
    app.connect('missing-reference', find_by_last_name)
    app.connect('source-read', list_types)
    app.connect('env-get-outdated', lambda *_: [TYPES])  # whatever was registered since the last build
