from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import ConcatDataset
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.structures import SegDataSample

from mmgroupnet.engine.hooks import LabelRangeHook
from mmgroupnet.errors import UserError


def dataset(**options) -> BaseSegDataset:
    return BaseSegDataset(metainfo=dict(classes=('a', 'b', 'c')), data_prefix={}, lazy_init=True, **options)


def batch(mask) -> dict:
    sample = SegDataSample(metainfo=dict(img_path='one.jpg', seg_map_path='one.png'))
    sample.gt_sem_seg = PixelData(data=torch.tensor(mask)[None])
    return dict(inputs=[], data_samples=[sample])


def check(data, data_batch, stage='train') -> None:
    runner = SimpleNamespace(**{f'{stage}_dataloader': SimpleNamespace(dataset=data)})
    getattr(LabelRangeHook(), f'before_{stage}_iter')(runner, 0, data_batch)


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_an_id_outside_the_classes_is_named_with_its_file(stage):
    with pytest.raises(UserError, match=r'mask one\.png holds the ids 3, 19: BaseSegDataset has the 3 classes 0 to 2'):
        check(dataset(), batch([[0, 3, 255], [19, 2, 3]]), stage)


def test_negative_ids_are_named():
    """As of a dataset that takes 1 from all ids, and has no 0."""
    with pytest.raises(UserError, match=r'mask one\.png holds the ids -2, -1: '):
        check(dataset(), batch([[0, -1, 255], [-2, 2, -1]]))
    check(dataset(ignore_index=-1), batch([[0, -1]]))


def test_classes_and_what_is_ignored_pass():
    check(dataset(), batch([[0, 1], [2, 255]]))
    check(dataset(ignore_index=9), batch([[0, 9]]))
    with pytest.raises(UserError, match='holds the ids 255: .* and 9 for what is ignored'):
        check(dataset(ignore_index=9), batch([[0, 255]]))


def test_datasets_inside_wrappers():
    wrapped = SimpleNamespace(dataset=ConcatDataset([dataset(), dataset()], lazy_init=True))
    with pytest.raises(UserError, match='holds the ids 4'):
        check(wrapped, batch([[4]]))


def test_many_ids_are_counted_out():
    with pytest.raises(UserError, match=r'ids 3, 4, .*, 12, \.\.\.:'):
        check(dataset(), batch([list(range(20))]))


def test_other_data_is_not_concerned():
    check(SimpleNamespace(metainfo={}), batch([[7]]))
    check(dataset(), dict(inputs=[], data_samples=[SegDataSample()]))
