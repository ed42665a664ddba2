"""The allow-list around each load: mmengine's files are read even after other code has left torch's ``safe_globals``
context, which removes entries from torch's list."""

import functools
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, checkpoint, load_checkpoint
from torch import nn
from torch.serialization import get_safe_globals, safe_globals

import mmgroupnet.registry  # noqa: F401  registers our loaders with mmengine
from mmgroupnet.checkpoints.pretrained import fetch_checkpoint
from mmgroupnet.checkpoints.read import last_finite, read_checkpoint
from mmgroupnet.checkpoints.safe import mmengine_globals
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from tests.tiny_run import load_tiny_run


def history(*values: float) -> HistoryBuffer:
    buffer = HistoryBuffer()
    for value in values:
        buffer.update(value)
    return buffer


@pytest.fixture
def path(tmp_path):
    """A file with the same content as a checkpoint of mmengine's Runner."""
    hub = dict(log_scalars={'train/loss': history(1.5, 2)}, runtime_info=dict(best_score=np.float64(0.25)))
    torch.save(dict(state_dict=nn.Linear(3, 2).state_dict(), message_hub=hub), tmp_path / 'epoch_1.pth')
    return tmp_path / 'epoch_1.pth'


def test_what_mmengine_stores_loads_in_safe_mode(path):
    with mmengine_globals():
        loaded = torch.load(path, weights_only=True)
    assert loaded['message_hub']['log_scalars']['train/loss'].statistics('mean') == 1.75
    assert loaded['message_hub']['runtime_info']['best_score'] == 0.25


def test_nothing_stays_on_the_list(path):
    before = get_safe_globals()
    read_checkpoint(path)
    load_checkpoint(nn.Linear(3, 2), str(path))
    assert set(get_safe_globals()) == set(before)
    assert HistoryBuffer not in before
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(path, weights_only=True)


def test_entries_of_others_stay(path):
    with safe_globals([HistoryBuffer, np.dtype]):
        read_checkpoint(path)
        assert {HistoryBuffer, np.dtype} <= set(get_safe_globals())


@pytest.mark.parametrize('kind', ['?', 'i1', 'u2', 'i8', 'f2', 'f4', 'f8'])
def test_arrays_and_scalars_of_numbers(kind, tmp_path):
    array = np.arange(6).astype(kind).reshape(2, 3)
    for value in (array, np.asfortranarray(array), array[0, 0], np.array(array[0, 1])):
        torch.save(dict(value=value), tmp_path / 'in.pth')
        read = read_checkpoint(tmp_path / 'in.pth')['value']
        np.testing.assert_array_equal(read, value, strict=True)
        again = pickle.loads(pickle.dumps(read))  # numpy's own classes again, which others can read
        assert type(again) is type(value) and again.dtype == value.dtype


_ADDRESSES = (3, '<', None, ('params',), dict(params=(np.dtype('O'), 0)), 8, 8, 0)
_RECONSTRUCT = np.zeros(1).__reduce__()[0]


class Evil:
    """Its pickle calls a function of numpy, and gives the result a state."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    'value',
    [
        Evil(np.dtype, ('f8', False, True), _ADDRESSES),  # numbers that are addresses of objects
        Evil(np.dtype, ('f8', False, True), (3, '|', None, None, None, 8, 1, 63)),
        np.dtype('O'),
        np.dtype('U4'),
        Evil(_RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (1,), np.dtype('f8'), False, [1])),
        Evil(_RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (1,), 'O', False, bytes(8))),
        np.array([None]),
        Evil(np.ndarray, ((1,), 'O'), (1, (1,), np.dtype('O'), False, [1])),
    ],
    ids=['addresses', 'flags', 'objects', 'text', 'content', 'dtype', 'array', 'constructor'],
)
def test_what_numpy_would_take_for_objects_is_refused(value, tmp_path):
    torch.save(dict(state_dict={}, value=value), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='is refused'):
        read_checkpoint(tmp_path / 'evil.pth')
    with pytest.raises(pickle.UnpicklingError):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'))


def test_an_array_that_a_pickle_constructs_has_no_objects(tmp_path):
    """numpy.ndarray itself would take the bytes of a buffer for addresses."""
    torch.save(dict(state_dict={}, value=Evil(np.ndarray, ((1,), 'O', b'A' * 8))), tmp_path / 'evil.pth')
    value = read_checkpoint(tmp_path / 'evil.pth')['value']
    assert value.dtype == np.uint8 and value.size == 0


def test_every_load_works_after_other_code_has_left_the_context(path):
    with safe_globals([HistoryBuffer, np.ndarray, np.dtype]):
        pass
    assert 'state_dict' in read_checkpoint(path)
    assert last_finite(path) == path
    assert 'state_dict' in fetch_checkpoint(str(path))
    assert 'state_dict' in load_checkpoint(nn.Linear(3, 2), str(path))
    assert CheckpointLoader.load_checkpoint(str(path))['message_hub']['runtime_info'] == dict(best_score=0.25)


def test_threads_do_not_take_the_list_from_each_other(path):
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: read_checkpoint(path), range(40)))) == 40


def test_a_forked_process_does_not_wait_for_a_thread_of_the_other(path):
    reads, is_forked = threading.Event(), threading.Event()

    def read() -> None:
        with mmengine_globals():
            reads.set()
            is_forked.wait()

    thread = threading.Thread(target=read)
    thread.start()
    reads.wait()
    child = multiprocessing.get_context('fork').Process(target=read_checkpoint, args=(path,))
    child.start()
    is_forked.set()
    child.join(60)
    child.kill()  # In case it waits for ever.
    thread.join()
    assert child.exitcode == 0


class Code:
    """Its pickle calls a function."""

    ran: list[str] = []

    def __reduce__(self):
        return self.ran.append, ('code of a checkpoint',)


@pytest.fixture
def address(tmp_path, monkeypatch):
    """The address of a local server of the files in ``tmp_path``."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_files_of_mmengine_are_read_from_an_address(path, address):
    hub = CheckpointLoader.load_checkpoint(f'{address}/{path.name}')['message_hub']
    assert hub['runtime_info'] == dict(best_score=0.25)


def test_code_is_refused(tmp_path, address, monkeypatch):
    torch.save(dict(state_dict=dict(weight=Code())), tmp_path / 'code.pth')
    monkeypatch.setattr(checkpoint, 'get_torchvision_models', lambda: dict(resnet18=f'{address}/code.pth'))
    for source in (str(tmp_path / 'code.pth'), f'{address}/code.pth', 'torchvision://resnet18'):
        with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
            CheckpointLoader.load_checkpoint(source)
    assert Code.ran == []


@HOOKS.register_module()
class ContextLeavingHook(Hook):
    """Leaves a ``safe_globals`` context, as another library may, and records the history that the run resumes from."""

    seen: list[float] = []

    def before_run(self, runner):
        with safe_globals([HistoryBuffer, np.ndarray]):
            pass

    def before_train_epoch(self, runner):
        self.seen.extend(runner.message_hub.get_scalar('train/loss').data[0])


def test_a_run_goes_on_from_a_file_of_mmengine(tmp_path):
    """The resumed run also restores the history of the losses."""
    options = dict(train_cfg__val_interval=9, default_hooks__logger__interval=4)
    run_training(load_tiny_run(tmp_path, train_cfg__max_epochs=1, **options))
    path = tmp_path / 'work/epoch_1.pth'
    content = torch.load(path, weights_only=True)
    content['message_hub']['log_scalars']['train/loss'] = history(7, 7, 7)
    torch.save(content, path)
    hooks = [dict(type='ContextLeavingHook')]
    run_training(load_tiny_run(tmp_path, train_cfg__max_epochs=2, custom_hooks=hooks, **options), resume=str(path))
    assert ContextLeavingHook.seen == [7, 7, 7]
