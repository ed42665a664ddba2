import signal
import subprocess
import sys
import time

from mmengine.fileio import get_file_backend

from mmgroupnet.checkpoints.write import ATOMIC_BACKEND


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


def test_the_atomic_backend_leaves_nothing_beside(tmp_path):
    get_file_backend(backend_args=dict(backend=ATOMIC_BACKEND)).put(b'new', str(tmp_path / 'sub' / 'a.pth'))
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['a.pth']
