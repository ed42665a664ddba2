"""How benchmarks collect the results of finished trainings."""

import json

import pytest

from benchmarks.trainings import box_results, collect


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


def test_results_of_a_detector_are_those_after_its_last_epoch(tmp_path):
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    records = [dict(loss=1.0, time=0.5, step=step) for step in range(1, 11)]
    records += [{'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': ap + 0.3, 'step': step} for step, ap in ((3, 0.5), (9, 0.4))]
    log.write_text(''.join(json.dumps(record) + '\n' for record in records))
    assert box_results(tmp_path) == dict(epochs=9, AP=0.4, AP50=0.7, seconds=5)
