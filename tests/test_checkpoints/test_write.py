import signal
import subprocess
import sys
import time
from collections import Counter, OrderedDict, namedtuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer

from mmgroupnet.checkpoints.write import ATOMIC_BACKEND, as_history, as_plain


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / 'epoch_1.pth'
    target.write_bytes(b'old')
    script = (
        'import sys, mmgroupnet.checkpoints.write\n'
        'from mmengine.fileio import get_file_backend\n'
        "backend = get_file_backend(backend_args=dict(backend='mmgroupnet.atomic'))\n"
        "backend.put(b'old', sys.argv[1])\n"
        "print('ready', flush=True)\n"
        'while True:\n'
        "    backend.put(b'x' * 2**26, sys.argv[1])\n"
    )
    writer = subprocess.Popen([sys.executable, '-c', script, str(target)], stdout=subprocess.PIPE)
    writer.stdout.readline()
    time.sleep(0.15)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert target.stat().st_size in (3, 2**26)


def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing(tmp_path):
    """A limit on the size of files ends a write as a full disk does."""
    script = (
        'import resource, signal, sys, torch\n'
        'from mmengine.fileio import get_file_backend\n'
        'from mmgroupnet.checkpoints.write import write_checkpoint\n'
        'from mmgroupnet.errors import UserError\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n'
        'for size in (2**20, 2**22):\n'
        '    try:\n'
        '        write_checkpoint(dict(weight=torch.zeros(size // 4)), sys.argv[1])\n'
        '    except UserError as error:\n'
        '        print(error)\n'
        'try:\n'
        "    get_file_backend(backend_args=dict(backend='mmgroupnet.atomic')).put(bytes(2**21), sys.argv[1])\n"
        'except OSError as error:\n'
        '    print(error)\n'
    )
    target = str(tmp_path / 'epoch_1.pth')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script, target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.startswith(f'{target} cannot be written: ') for line in lines[:2]] == [True, True]
    assert 'File too large' in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_atomic_backend_leaves_nothing_beside(tmp_path):
    get_file_backend(backend_args=dict(backend=ATOMIC_BACKEND)).put(b'new', str(tmp_path / 'sub' / 'a.pth'))
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['a.pth']


class TestPlain:
    def test_numbers_and_containers(self, tmp_path):
        value = dict(
            best=np.float64(0.5), count=np.int64(3), palette=np.array([[1, 2], [3, 4]]), classes=('a', np.str_('b')),
            milestones=Counter([4, 4, 8]), ordered=OrderedDict(a=[np.float32(0.25)]), cfg=ConfigDict(a=dict(b=1)),
            named=namedtuple('Named', 'a b')(np.float64(0.5), 1),
        )  # fmt: skip
        plain = as_plain(value)
        assert plain == dict(
            best=0.5, count=3, palette=[[1, 2], [3, 4]], classes=('a', 'b'), milestones=Counter([4, 4, 8]),
            ordered=OrderedDict(a=[0.25]), cfg=dict(a=dict(b=1)), named=(0.5, 1),
        )  # fmt: skip
        assert type(plain['milestones']) is Counter and type(plain['ordered']) is OrderedDict
        assert type(plain['cfg']) is type(plain['cfg']['a']) is dict
        assert type(value['ordered']['a'][0]) is np.float32
        torch.save(plain, tmp_path / 'plain.pth')
        assert torch.load(tmp_path / 'plain.pth', weights_only=True) == plain

    def test_a_history_and_back(self):
        history = HistoryBuffer(max_length=3)
        for value, count in ((1.5, 2), (0.1, 1), (3, 1), (4, 4)):
            history.update(value, count)
        plain = as_plain(history)
        assert set(map(type, plain.values())) == {torch.Tensor, int}
        found = as_history(plain)
        for given, restored in zip(history.data, found.data, strict=True):
            assert restored.tolist() == given.tolist() and restored.dtype == given.dtype
        found.update(1)
        assert len(found.data[0]) == 3
        assert plain['log_history'].tolist() == [0.1, 3, 4]

    def test_what_is_no_history_is_left(self):
        history = HistoryBuffer()
        assert as_history(history) is history
        assert as_history(1.5) == 1.5
