import numpy as np
import pytest

from mmgroupnet.engine.checks.masks import MaskRule, ids_of, rule_of
from mmgroupnet.errors import UserError


class Masks:
    """A data set of three classes."""

    metainfo = dict(classes=('a', 'b', 'c'))

    def __init__(self, ignore_index=255):
        self.ignore_index = ignore_index


def ids(mask, **options):
    return MaskRule(Masks(**options)).check(dict(gt_seg_map=np.array(mask), seg_map_path='one.png'))


@pytest.mark.parametrize('dtype', [np.uint8, np.int64])
def test_ids_of(dtype):
    mask = np.array([[0, 255, 0], [7, 3, 254]], dtype)
    assert ids_of(mask) == [0, 3, 7, 254, 255]
    assert ids_of(np.ascontiguousarray(mask.T)[::-1]) == [0, 3, 7, 254, 255]


def test_classes_and_what_is_ignored_pass():
    assert ids([[0, 1], [2, 255]]) == [0, 1, 2, 255]
    assert ids([[0, 9]], ignore_index=9) == [0, 9]
    assert ids([[0, -1]], ignore_index=-1) == [-1, 0]


def test_an_id_outside_the_classes_is_named_with_its_file():
    with pytest.raises(UserError, match=r'mask one\.png holds the ids 3, 19: Masks has the 3 classes 0 to 2 and 255'):
        ids([[0, 3, 255], [19, 2, 3]])


def test_negative_ids_are_named():
    with pytest.raises(UserError, match=r'mask one\.png holds the ids -2, -1: '):
        ids([[0, -1, 255], [-2, 2, -1]])


def test_what_another_data_set_ignores():
    with pytest.raises(UserError, match=r'holds the ids 255: .* and 9 for what is ignored'):
        ids([[0, 255]], ignore_index=9)


def test_what_heads_ignore():
    sample = dict(gt_seg_map=np.array([[0, 254, 255]]), seg_map_path='one.png')
    assert MaskRule(Masks(), [254]).check(sample) == [0, 254, 255]
    with pytest.raises(UserError, match='holds the ids 254'):
        MaskRule(Masks()).check(sample)


def test_many_ids_are_counted_out():
    with pytest.raises(UserError, match=r'ids 3, 4, .*, 12, \.\.\.:'):
        ids([list(range(20))])


def test_a_picture_in_place_of_a_mask():
    with pytest.raises(UserError, match=r'mask one\.png has the shape \(2, 2, 3\): Masks takes masks of one channel'):
        ids(np.zeros((2, 2, 3), np.uint8))


def test_other_data_is_not_concerned():
    assert rule_of(Masks(ignore_index=None)) is None
    assert rule_of(object()) is None


class TestAbsentClasses:
    @pytest.fixture
    def said(self, monkeypatch):
        said = []
        monkeypatch.setattr('mmgroupnet.engine.checks.masks.print_log', lambda message, **_: said.append(message))
        return said

    def test_while_the_ignored_id_occurs(self, said):
        MaskRule(Masks()).warn_of_absent({0, 255}, 'here')
        assert said[0].startswith("classes 1 ('b'), 2 ('c') never occur in here, while 255, which is ignored, does")

    def test_without_the_ignored_id(self, said):
        MaskRule(Masks()).warn_of_absent({0}, 'here')
        MaskRule(Masks()).warn_of_absent({0, 1, 2, 255}, 'here')
        assert not said
