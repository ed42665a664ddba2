"""Failed allocations and other failures of the kernels raise a Python exception, and the process continues."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmgroupnet import ops
from mmgroupnet.ops import kernels
from tests.test_ops import oracle
from tests.test_ops.oracle import geometry, random_signs, random_unit

ROOT = Path(__file__).parents[2]
# Of the activations of 64 channels.
BYTES = dict(portable=8, neon=256, avx2=32, avx512bw=32, avx512=8)


@pytest.fixture
def library(kernel_set) -> ctypes.CDLL:
    if kernel_set == 'simulated':
        pytest.skip('without kernels torch allocates the memory')
    return kernels.library()


def assert_works() -> None:
    unit, x = random_unit(geometry()), random_signs(2, 32, 9, 9)
    torch.set_num_threads(2)
    assert torch.equal(ops.convolve(x, ops.pack_weight(unit.weight), unit.numbers), oracle.convolve(unit, x))


class TestOutOfMemory:
    """The calls need more memory than the address space has. They fail before they read any input, so these are
    None."""

    def test_in_the_calling_thread(self, library):
        bytes_needed = 2**50 // 256 * 3 * 64 * 4  # Three sums for each of 64 channels, for every 256 pixels.
        with pytest.raises(MemoryError, match=f'^mmg_relu_sums: {bytes_needed} bytes could not be allocated$'):
            library.mmg_relu_sums(None, 0, 2**50, 64, None, 2)
        assert_works()

    @pytest.mark.parametrize('threads', [1, 2, 3])
    def test_in_a_job(self, library, kernel_set, threads):
        """A job allocates the activations of its rows, here of one row."""
        channels, height, width = 2**23, 8, 2**28
        numbers = geometry(num_bases=1, in_channels=channels, kernel_size=(1, 1), padding=(0, 0))
        bytes_needed = channels // 64 * BYTES[kernel_set] * width
        with pytest.raises(MemoryError, match=f'^mmg_convolve: {bytes_needed} bytes could not be allocated$'):
            library.mmg_convolve(kernels.Unit.of(numbers), 1, height, width, None, 1, False, None, threads)
        assert_works()

    def test_of_an_op(self, compiled):
        """A block allocates the map between its units."""
        code = """
import resource
import torch
from mmgroupnet.ops import Connection
from tests.test_ops.oracle import Block, geometry, random_unit

def block(channels):
    shapes = dict(num_bases=1, kernel_size=(1, 1), padding=(0, 0))
    units = [geometry(in_channels=1, out_channels=channels, **shapes), geometry(in_channels=channels, **shapes)]
    return Block(Connection.SEPARATE, 1, [random_unit(unit) for unit in units])

x, wide, narrow = torch.ones(1, 1, 512, 512), block(4096), block(2)
torch.set_num_threads(2)
expected = narrow.run_op(x)
pages = int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, resource.RLIM_INFINITY))
try:
    wide.run_op(x)
except MemoryError as error:
    print(error)
assert torch.equal(narrow.run_op(x), expected)
"""
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f'mmg_run_block: {512 * 512 * 4096 * 4} bytes could not be allocated'


def test_other_failures(library, kernel_set):
    with pytest.raises(RuntimeError, match='^mmg_select_kernels: kernels of that name are not available$'):
        library.mmg_select_kernels(b'sse9')
    assert ops.selected_kernels() == kernel_set
    assert_works()
