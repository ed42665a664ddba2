"""A run's checkpoints can be read in safe mode without an allow-list, and resuming from them works as before."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from torch.serialization import get_unsafe_globals_in_checkpoint

from mmgroupnet.checkpoints.write import as_history, as_plain
from mmgroupnet.engine.hooks import PlainCheckpointHook
from mmgroupnet.engine.training import run_training
from tests.tiny_run import load_tiny_run


@HOOKS.register_module()
class HistoryNotingHook(Hook):
    """Records the history of the losses at the start of a resumed run and at the end of each run."""

    seen: list[list[float]] = []

    def _note(self, runner):
        self.seen.append(runner.message_hub.get_scalar('train/loss').data[0].tolist())

    def before_train_epoch(self, runner):
        if runner.epoch:
            self._note(runner)

    def after_train(self, runner):
        self._note(runner)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """The work folder of a run with one epoch, which also keeps the best checkpoint."""
    folder = tmp_path_factory.mktemp('plain')
    keep = dict(type='CheckpointHook', interval=1, save_best='auto')
    cfg = load_tiny_run(
        folder, train_cfg__max_epochs=1, train_cfg__val_interval=1, default_hooks__checkpoint=keep,
        custom_hooks=[dict(type='HistoryNotingHook')],
    )  # fmt: skip
    run_training(cfg)
    return folder / 'work'


def test_files_need_no_allow_list(work):
    paths = sorted(work.glob('*.pth'))
    assert [path.name for path in paths] == ['best_coco_bbox_mAP_epoch_1.pth', 'epoch_1.pth']
    for path in paths:
        assert get_unsafe_globals_in_checkpoint(path) == []
    hub = torch.load(work / 'epoch_1.pth', weights_only=True)['message_hub']
    assert type(hub['runtime_info']['best_score']) is float
    assert len(hub['log_scalars']['train/loss']['log_history']) == 4


def test_a_resumed_run_takes_the_history_up(work):
    (whole,) = HistoryNotingHook.seen
    cfg = load_tiny_run(
        work.parent, train_cfg__max_epochs=2, train_cfg__val_interval=2, custom_hooks=[dict(type='HistoryNotingHook')]
    )
    run_training(cfg, resume=str(work / 'epoch_1.pth'))
    _, before, after = HistoryNotingHook.seen
    assert before == whole and len(whole) == 4
    assert after[:4] == whole and len(after) == 8


def test_objects_of_the_run_are_left_as_they_are():
    history = HistoryBuffer([1.0], [1])
    hub = dict(log_scalars=dict(loss=history), runtime_info={}, resumed_keys={})
    weights = dict(weight=torch.ones(1))
    checkpoint = dict(meta=dict(epoch=1), message_hub=hub, state_dict=weights)
    PlainCheckpointHook().before_save_checkpoint(None, checkpoint)
    assert hub['log_scalars']['loss'] is history and checkpoint['message_hub'] is not hub
    assert checkpoint['state_dict'] is weights
    PlainCheckpointHook().after_load_checkpoint(None, checkpoint)
    assert isinstance(checkpoint['message_hub']['log_scalars']['loss'], HistoryBuffer)
    PlainCheckpointHook().after_load_checkpoint(None, dict(state_dict=weights))


class OnGPU:
    """A tensor on a GPU, as far as histories use it: it has no ``numpy``."""

    def __init__(self, tensor):
        self.tensor = tensor

    def cpu(self):
        return self.tensor


def test_a_run_on_a_gpu_resumes():
    """mmengine resumes with all tensors of the file on the GPU."""
    stored = as_plain(HistoryBuffer([1.0, 3.0], [1, 2]))
    moved = {key: OnGPU(value) if isinstance(value, torch.Tensor) else value for key, value in stored.items()}
    assert [array.tolist() for array in as_history(moved).data] == [[1.0, 3.0], [1, 2]]
