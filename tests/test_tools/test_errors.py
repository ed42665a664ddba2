"""The error messages on the screen and the tracebacks in the log."""

import argparse
import functools
import logging
import re
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch.utils.data import DataLoader, Dataset

from mmgroupnet.engine import errors
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.errors import UserError
from mmgroupnet.models import GroupNetResNet
from tests.tiny_run import write_tiny_run

TOOLS = Path(__file__).parents[2] / 'tools'
# Tools without --traceback: one runs before any package is installed, the other passes its command line to mmseg's
# script.
ALONE = ('build_mmcv.py', 'voc_aug.py')


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('errors')
    cfg = Config.fromfile(write_tiny_run(folder))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    return folder


@pytest.fixture
def run_test_tool(trained, tmp_path, monkeypatch):
    """A function that runs tools/test.py in this process, with the work directory ``tmp_path / 'work'``."""

    def run(*options: str, checkpoint: str = 'weights.pth') -> None:
        # mmengine keeps loggers under the experiment's name, whose default is the time in seconds.
        name = f'experiment_name={tmp_path.name}'
        words = [trained / 'tiny.py', trained / checkpoint, '--work-dir', tmp_path / 'work', *options]
        monkeypatch.setattr('sys.argv', ['test.py', *map(str, words), '--cfg-options', name])
        runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')

    return run


@pytest.fixture
def logger():
    """A new logger without a file; mmengine uses the newest logger."""
    name = 'test_errors'
    MMLogger._instance_dict.pop(name, None)
    yield MMLogger.get_instance(name)
    MMLogger._instance_dict.pop(name)


def fail_with(monkeypatch, error: Exception) -> None:
    def fail(self, x):
        raise error

    monkeypatch.setattr(GroupNetResNet, 'forward', fail)


def logged(folder: Path) -> str:
    (log,) = folder.glob('work/*/*.log')
    return log.read_text()


def test_a_fault_of_our_own_keeps_its_traceback(run_test_tool, tmp_path, monkeypatch, capsys):
    fail_with(monkeypatch, ValueError('not enough values to unpack'))
    with pytest.raises(ValueError, match='not enough values') as error:
        run_test_tool()
    assert not isinstance(error.value, UserError)
    assert 'error: ' not in capsys.readouterr().err
    assert re.search(r'Traceback \(most recent call last\):(.|\n)*ValueError: not enough values', logged(tmp_path))


def test_a_fault_while_the_model_is_built_keeps_its_traceback(run_test_tool, tmp_path, monkeypatch):
    @functools.wraps(GroupNetResNet.__init__)
    def fail(self, *args, **kwargs):
        raise ValueError('an inner fault')

    monkeypatch.setattr(GroupNetResNet, '__init__', fail)
    with pytest.raises(ValueError, match='an inner fault') as error:
        run_test_tool()
    assert not isinstance(error.value, UserError)
    assert 'ValueError: an inner fault' in logged(tmp_path)


def test_what_the_user_can_fix_is_one_line_and_a_traceback_in_the_log(run_test_tool, tmp_path, monkeypatch, capsys):
    fail_with(monkeypatch, UserError('depth=19: give 18, 34 or 50'))
    with pytest.raises(SystemExit) as error:
        run_test_tool()
    assert error.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == 'error: depth=19: give 18, 34 or 50'
    assert 'UserError: ' not in captured.out + captured.err
    assert re.search(r'Traceback \(most recent call last\):(.|\n)*UserError: depth=19', logged(tmp_path))


def test_traceback_on_the_screen(run_test_tool, tmp_path, monkeypatch):
    fail_with(monkeypatch, UserError('depth=19: give 18, 34 or 50'))
    with pytest.raises(UserError, match='depth=19'):
        run_test_tool('--traceback')
    assert 'UserError: depth=19' in logged(tmp_path)


def test_errors_before_a_run_has_a_log(run_test_tool, logger, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_test_tool(checkpoint='nowhere.pth')
    assert capsys.readouterr().err.startswith('error: checkpoint ')
    log = (tmp_path / 'work/errors.log').read_text()
    assert 'Traceback' in log and 'nowhere.pth does not exist' in log


def test_a_work_dir_that_is_a_file(run_test_tool, logger, tmp_path, capsys):
    (tmp_path / 'work').touch()
    with pytest.raises(SystemExit):
        run_test_tool()
    assert capsys.readouterr().err == f'error: --work-dir {tmp_path}/work is a file: give a folder\n'


@pytest.mark.parametrize(
    'tool', [path for path in sorted(TOOLS.rglob('*.py')) if path.name not in ALONE], ids=lambda path: path.name
)
def test_every_tool_shows_tracebacks_on_demand(tool, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', [tool.name, '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(tool), run_name='__main__')
    assert '--traceback' in capsys.readouterr().out
    assert 'with one_line_errors(args):' in tool.read_text()


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError('mask 7.png holds the ids 3: give 0 to 2')


def test_an_error_of_a_loaders_worker_is_the_same_line(logger, capsys):
    with pytest.raises(SystemExit):
        with one_line_errors(argparse.Namespace(traceback=False)):
            next(iter(DataLoader(Broken(), num_workers=1)))
    assert capsys.readouterr().err.splitlines()[-1] == 'error: mask 7.png holds the ids 3: give 0 to 2'


def test_every_process_has_a_log(logger, tmp_path, monkeypatch):
    """In mmengine only the first process writes the log file, although the loggers of all processes have its name."""
    logger._log_file = str(tmp_path / 'run.log')
    monkeypatch.setattr(errors, 'get_rank', lambda: 1)
    with pytest.raises(RuntimeError):
        with one_line_errors(argparse.Namespace(traceback=False, work_dir=str(tmp_path))):
            raise RuntimeError('only here')
    assert 'RuntimeError: only here' in (tmp_path / 'run_rank1.log').read_text()
    assert not (tmp_path / 'errors.log').exists()


def test_a_log_that_cannot_be_written_hides_nothing(logger, tmp_path, capsys):
    (tmp_path / 'file').touch()
    with pytest.raises(RuntimeError, match='the error itself'):
        with one_line_errors(argparse.Namespace(traceback=False, work_dir=str(tmp_path / 'file/inside'))):
            raise RuntimeError('the error itself')
    assert 'cannot be written' in capsys.readouterr().err


def test_nothing_is_logged_without_a_work_directory(logger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        with one_line_errors(argparse.Namespace(traceback=False)):
            raise UserError('a line')
    assert not list(tmp_path.iterdir())
    assert not any(isinstance(handler, logging.FileHandler) for handler in logger.handlers)
