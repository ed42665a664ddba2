import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign
from mmseg.models.decode_heads.dm_head import DCM
from torch import nn

import mmgroupnet
from mmgroupnet.deploy import pack
from mmgroupnet.layers import BinaryConv2d, guard_foreign_code


def test_roi_align_reads_channels_last():
    """Without the guard, mmcv's kernel silently reads wrong pixels of channels_last maps."""
    align = RoIAlign(3, 1.0, 2)
    x, rois = torch.randn(1, 8, 9, 7), torch.tensor([[0.0, 1, 1, 6, 7]])
    expected = align(x, rois)
    last = x.contiguous(memory_format=torch.channels_last)
    guard_foreign_code(align)
    assert torch.equal(align(last, rois), expected)


@pytest.mark.parametrize('conv_type', [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_deformable_convs_take_a_packed_models_weights(conv_type):
    """Weights of a packed model are in channels_last. The guard also changes those of the conv that computes the
    offsets, since its output has the memory format of its weights."""
    conv = conv_type(4, 4, 3, padding=1)
    torch.nn.init.normal_(conv.conv_offset.weight)
    x = torch.randn(1, 4, 6, 5)
    expected = conv(x)
    conv.to(memory_format=torch.channels_last)
    guard_foreign_code(conv)
    assert torch.equal(conv(x.contiguous(memory_format=torch.channels_last)), expected)


def test_one_hook_is_enough():
    align = RoIAlign(3, 1.0, 2)
    for _ in range(2):
        guard_foreign_code(align)
    assert len(align._forward_pre_hooks) == 1


def test_what_leaves_a_head_can_be_viewed():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = nn.Conv2d(4, 4, 1)
            self.mask_head = nn.ModuleList([nn.Conv2d(4, 6, 1)])

    model = Detector().to(memory_format=torch.channels_last)
    guard_foreign_code(model)
    x = torch.randn(1, 4, 5, 7).contiguous(memory_format=torch.channels_last)
    assert not model.neck(x).is_contiguous()
    assert model.mask_head[0](x).is_contiguous()


def test_a_dmnet_can_view_what_its_convs_write():
    """It convolves a batch as the channels of one picture."""
    module = DCM(3, True, 4, 6, conv_cfg=None, norm_cfg=None, act_cfg=dict(type='ReLU')).eval()
    x = torch.randn(2, 4, 5, 7)
    expected = module(x)
    module.to(memory_format=torch.channels_last)
    guard_foreign_code(module)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), expected)


def test_other_modules_may_have_the_name_of_that_of_a_dmnet():
    guard_foreign_code(type('DCM', (nn.Conv2d,), {})(3, 4, 1))


def test_features_can_be_flattened():
    """VGG calls the layers of its ``features`` one by one."""

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2))

    model = Backbone().to(memory_format=torch.channels_last)
    guard_foreign_code(model)
    x = torch.randn(1, 4, 4, 6).contiguous(memory_format=torch.channels_last)
    for layer in model.features:
        x = layer(x)
    assert x.is_contiguous()


@pytest.mark.parametrize('make', [lambda model: mmgroupnet.binarize(model, [dict(become='binary')]), pack])
def test_models_with_binary_layers_are_guarded(make):
    align = RoIAlign(3, 1.0, 2)
    x, rois = torch.randn(1, 8, 9, 7), torch.tensor([[0.0, 1, 1, 6, 7]])
    expected = align(x, rois)
    conv = nn.Conv2d(4, 4, 1) if make is not pack else BinaryConv2d(4, 4, 1)
    model = make(nn.ModuleDict(dict(conv=conv, align=align)))
    assert torch.equal(model['align'](x.contiguous(memory_format=torch.channels_last), rois), expected)
