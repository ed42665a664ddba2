"""What benchmarks that train do with finished runs."""

import json

import pytest

from benchmarks.trainings import collect


def test_finished_runs_are_not_made_again_and_others_are_written_as_they_come(tmp_path):
    path, made = tmp_path / 'results.jsonl', []
    path.write_text('{"name": "b", "AP": 1}\n')

    def finish(name):
        made.append(name)
        if name == 'd':
            raise KeyboardInterrupt
        return dict(name=name, AP=2)

    with pytest.raises(KeyboardInterrupt):
        collect(path, ['a', 'b', 'c', 'd'], lambda line: line['name'], finish)
    assert made == ['a', 'c', 'd']
    written = [dict(name='b', AP=1), dict(name='a', AP=2), dict(name='c', AP=2)]
    assert [json.loads(text) for text in path.read_text().splitlines()] == written
    assert collect(path, ['a', 'b'], lambda line: line['name'], finish) == written
