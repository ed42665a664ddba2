"""The tables in the documents match the recorded results."""

from collections import Counter
from importlib.util import find_spec

import pytest

from benchmarks import tables

NAMES = {str(path.relative_to(tables.ROOT)): tables.names_in(path.read_text()) for path in tables.documents()}


@pytest.mark.parametrize('path', [path for path, names in NAMES.items() if names])
def test_documents_have_the_tables_of_the_results(path):
    document = tables.ROOT / path
    text = document.read_text()
    if 'triton_kernels' in NAMES[path] and find_spec('triton') is None:
        pytest.skip('the table of Triton kernels needs Triton')
    assert tables.fill(text, document.parent) == text, 'run `python benchmarks/tables.py`'


def test_every_table_has_a_document():
    found = Counter(name for names in NAMES.values() for name in names)
    assert set(found) == set(tables.TABLES)


def test_tables_are_replaced_and_nothing_else(monkeypatch):
    monkeypatch.setattr(tables, 'TABLES', {'a': lambda: '| a |\n| --- |', 'b': lambda: '| b |'})
    text = 'one\n<!-- table: a -->\n| old |\n<!-- end of table -->\ntwo\n\n<!-- table: b -->\n<!-- end of table -->\n'
    filled = tables.fill(text)
    assert filled == (
        'one\n<!-- table: a -->\n| a |\n| --- |\n<!-- end of table -->\ntwo\n\n'
        '<!-- table: b -->\n| b |\n<!-- end of table -->\n'
    )
    assert tables.fill(filled) == filled


def test_links_lead_to_configs_from_where_the_document_lies(monkeypatch):
    monkeypatch.setattr(tables, 'TABLES', {'a': lambda: '[x](fcos_r18_bccd.py) [y](https://a.b/c.py)'})
    text = '<!-- table: a -->\n<!-- end of table -->\n'
    for folder, link in (('docs', '../configs/detection/fcos_r18_bccd.py'), ('configs/detection', 'fcos_r18_bccd.py')):
        assert f'[x]({link}) [y](https://a.b/c.py)\n' in tables.fill(text, tables.ROOT / folder)


def test_an_unknown_table_is_an_error():
    with pytest.raises(ValueError, match="table: 'c' is none of"):
        tables.fill('<!-- table: c -->\n<!-- end of table -->')
