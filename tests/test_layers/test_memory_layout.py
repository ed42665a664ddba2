import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign

from mmgroupnet.layers import guard_foreign_kernels


def test_roi_align_reads_channels_last():
    """mmcv's kernel alone takes the wrong pixels, silently."""
    align = RoIAlign(3, 1.0, 2)
    x, rois = torch.randn(1, 8, 9, 7), torch.tensor([[0.0, 1, 1, 6, 7]])
    expected = align(x, rois)
    last = x.contiguous(memory_format=torch.channels_last)
    guard_foreign_kernels(align)
    assert torch.equal(align(last, rois), expected)


def test_deformable_convs_take_a_packed_models_weights():
    conv = ModulatedDeformConv2dPack(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 6, 5)
    expected = conv(x)
    conv.to(memory_format=torch.channels_last)
    guard_foreign_kernels(conv)
    assert torch.equal(conv(x.contiguous(memory_format=torch.channels_last)), expected)


def test_one_hook_is_enough():
    align = RoIAlign(3, 1.0, 2)
    for _ in range(2):
        guard_foreign_kernels(align)
    assert len(align._forward_pre_hooks) == 1
