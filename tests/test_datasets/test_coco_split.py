import json

import pytest

from mmgroupnet.datasets import split_coco
from mmgroupnet.errors import UserError


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / 'all.json'
    whole = dict(
        info=dict(year=2026),
        images=[dict(id=number, file_name=f'{number}.jpg') for number in range(10)],
        annotations=[dict(id=number, image_id=number % 10) for number in range(25)],
        categories=[dict(id=1, name='a')],
    )
    path.write_text(json.dumps(whole))
    return path


def test_every_picture_is_in_one_part_with_its_boxes(annotations):
    written = split_coco(annotations, 0.3, seed=0)
    assert {path.name: number for path, number in written.items()} == {'all_train.json': 7, 'all_val.json': 3}
    train, val = (json.loads(path.read_text()) for path in written)
    ids = [[picture['id'] for picture in part['images']] for part in (train, val)]
    assert sorted(sum(ids, [])) == list(range(10))
    for part, pictures in zip((train, val), ids, strict=True):
        assert {entry['image_id'] for entry in part['annotations']} == set(pictures)
        assert part['categories'] == [dict(id=1, name='a')] and part['info'] == dict(year=2026)
    assert len(train['annotations']) + len(val['annotations']) == 25


def test_the_seed_chooses(annotations):
    def held_out(seed: int) -> str:
        split_coco(annotations, 0.3, seed)
        return annotations.with_name('all_val.json').read_text()

    assert held_out(0) == held_out(0) != held_out(1)


@pytest.mark.parametrize(('share', 'pictures'), [(0.01, 1), (0.99, 9)])
def test_no_part_is_empty(annotations, share, pictures):
    assert list(split_coco(annotations, share, 0).values()) == [10 - pictures, pictures]


def test_bad_input(tmp_path, annotations):
    with pytest.raises(UserError, match='held_out=2: give a share between 0 and 1'):
        split_coco(annotations, 2, 0)
    with pytest.raises(UserError, match='none.json does not exist'):
        split_coco(tmp_path / 'none.json', 0.2, 0)
    for text in ('[]', '{"images": []}', 'boxes'):
        annotations.write_text(text)
        with pytest.raises(UserError, match='all.json is not an annotation file in the format of COCO'):
            split_coco(annotations, 0.2, 0)
    annotations.write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(UserError, match='all.json has 1 pictures: a split needs at least two'):
        split_coco(annotations, 0.2, 0)
