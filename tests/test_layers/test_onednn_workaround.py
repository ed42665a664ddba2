"""oneDNN (3.12) writes beyond its scratch memory when it computes the weight gradient of strided 1x1 convs with few
channels from channels_last maps, https://github.com/uxlfoundation/oneDNN/issues/6035. In this case binary convs give it
contiguous maps."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The conv has fewer channels than a vector has lanes (8 with AVX2, 16 with AVX-512). Its map is so large that oneDNN
# would write beyond the heap, and not only into the memory directly behind its scratch memory.
CODE = """
import torch
from mmgroupnet.layers import BinaryConv2d

for is_lean, threads in ((True, 1), (True, 2), (False, 1), (False, 2)):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    conv = BinaryConv2d(3, 16, 1, stride=2, weight=dict(type='mmgroupnet.UnscaledWeight'), memory_efficient=is_lean)
    x = torch.randn(4, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    gradient = torch.randint(-8, 9, (4, 16, 128, 128)).float().contiguous(memory_format=torch.channels_last)
    conv(x).backward(gradient)
    signs = torch.where(x >= 0, 1.0, -1.0)[:, :, ::2, ::2]
    # Sums of small integers are exact.
    expected = torch.einsum('nohw,nihw->oi', gradient, signs)
    assert torch.equal(conv.weight.grad[:, :, 0, 0], expected), (is_lean, threads)
"""


def test_gradient_of_strided_1x1_weights():
    """In a separate process, since without the workaround it crashes, hangs or has a wrong gradient."""
    command = [sys.executable, '-c', CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
