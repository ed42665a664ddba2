"""Reading checkpoints in safe mode, refusing bad ones, and finding the checkpoint to resume from."""

import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmgroupnet.checkpoints.read import find_resumable, first_meta, last_finite, read_checkpoint
from mmgroupnet.errors import UserError


class Code:
    def __reduce__(self):
        return os.system, ('echo this must never run',)


class OtherMethod:
    """Its pickle refers to a method, in the same way as a pickled HistoryBuffer refers to its statistics."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.fixture
def good(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    history = HistoryBuffer()
    history.update(1.5)
    history.update(2)
    message_hub = dict(log_scalars={'train/loss': history}, runtime_info=dict(best_score=np.float64(0.25)))
    torch.save(dict(state_dict=nn.Linear(3, 2).state_dict(), message_hub=message_hub, meta=dict(epoch=1)), path)
    return path


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_reading_gives_shapes(good):
    checkpoint = read_checkpoint(good)
    assert checkpoint['state_dict']['weight'].shape == (2, 3)
    assert checkpoint['meta'] == dict(epoch=1)


def test_the_format_of_old_torch_is_read(tmp_path):
    torch.save(dict(state_dict={'a': torch.ones(2)}), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / 'old.pth')['state_dict']['a'].shape == (2,)


@pytest.mark.parametrize('content', [Code(), OtherMethod(), nn.Linear(1, 1)])
def test_code_is_refused(tmp_path, capfd, content):
    torch.save(dict(state_dict=content), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match=r'evil\.pth carries code \(\S+\) and is refused'):
        read_checkpoint(tmp_path / 'evil.pth')
    assert 'must never run' not in capfd.readouterr().out


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(good, share):
    truncate(good, share)
    with pytest.raises(UserError, match=r'epoch_1\.pth is truncated or no checkpoint'):
        read_checkpoint(good)


def test_other_files_are_named(tmp_path):
    (tmp_path / 'text.pth').write_text('hello')
    with pytest.raises(UserError, match=r'text\.pth is truncated or no checkpoint'):
        read_checkpoint(tmp_path / 'text.pth')
    with pytest.raises(UserError, match=r'nothing\.pth does not exist'):
        read_checkpoint(tmp_path / 'nothing.pth')
    torch.save(torch.ones(1), tmp_path / 'tensor.pth')
    with pytest.raises(UserError, match=r'tensor\.pth holds a Tensor, not a dict'):
        read_checkpoint(tmp_path / 'tensor.pth')


@pytest.mark.parametrize(
    ('content', 'kind'), [(dict(state_dict=None), 'NoneType'), (dict(state_dict=[1]), 'list'), ({0: 1}, 'dict')]
)
def test_weights_without_names_are_refused(tmp_path, content, kind):
    torch.save(content, tmp_path / 'some.pth')
    with pytest.raises(UserError, match=f'some.pth holds no weights by their names, but a {kind}$'):
        read_checkpoint(tmp_path / 'some.pth')


def test_the_last_checkpoint_with_finite_weights(tmp_path):
    paths = [tmp_path / f'epoch_{epoch}.pth' for epoch in (1, 2, 3, 10)]
    for path, value in zip(paths, [1.0, 2.0, float('nan'), 4.0], strict=True):
        weights = dict(weight=torch.tensor([0.0, value]), count=torch.tensor(3))
        torch.save(dict(state_dict=weights), path)
    assert last_finite(paths[3]) == paths[3]
    assert last_finite(str(paths[2])) == paths[1]
    assert last_finite(paths[0]) == paths[0]
    assert last_finite(None) is None
    assert last_finite(tmp_path / 'epoch_4.pth') is None
    paths[1].write_bytes(b'half')
    assert last_finite(paths[2]) == paths[0]


class TestFindResumable:
    @pytest.fixture
    def work_dir(self, good):
        for epoch in (2, 10):
            (good.parent / f'epoch_{epoch}.pth').write_bytes(good.read_bytes())
        (good.parent / 'last_checkpoint').write_text(str(good.parent / 'epoch_10.pth'))
        return good.parent

    def test_nothing_to_resume(self, tmp_path):
        assert find_resumable(tmp_path) is None
        assert find_resumable(tmp_path / 'missing') is None

    def test_the_noted_one(self, work_dir):
        assert find_resumable(work_dir) == str(work_dir / 'epoch_10.pth')

    def test_a_moved_folder(self, work_dir):
        moved = work_dir.rename(work_dir.parent / 'moved')
        assert find_resumable(moved) == str(moved / 'epoch_10.pth')

    def test_an_unreadable_one_gives_way_to_the_one_before(self, work_dir):
        truncate(work_dir / 'epoch_10.pth')
        assert find_resumable(work_dir) == str(work_dir / 'epoch_2.pth')

    def test_an_empty_note(self, work_dir):
        (work_dir / 'last_checkpoint').write_text('')
        assert find_resumable(work_dir) == str(work_dir / 'epoch_10.pth')

    def test_an_address(self, work_dir):
        (work_dir / 'last_checkpoint').write_text('s3://bucket/run/epoch_10.pth')
        assert find_resumable(work_dir) == 's3://bucket/run/epoch_10.pth'

    def test_a_folder_of_checkpoints(self, work_dir, tmp_path_factory):
        run = tmp_path_factory.mktemp('run')
        (run / 'last_checkpoint').write_text(str(work_dir / 'epoch_10.pth'))
        truncate(work_dir / 'epoch_10.pth')
        assert find_resumable(run) == str(work_dir / 'epoch_2.pth')

    def test_none_is_readable(self, work_dir):
        for path in work_dir.glob('*.pth'):
            truncate(path)
        with pytest.raises(UserError, match='none of the 3 checkpoints in .* is readable'):
            find_resumable(work_dir)


def test_the_meta_of_parts_is_that_of_the_first():
    meta = dict(classes=('a', 'b'))
    assert first_meta(meta) == first_meta([meta, dict(palette=[])]) == meta
    assert first_meta(None) == first_meta([]) == {}
