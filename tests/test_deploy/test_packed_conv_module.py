"""Packed twins of mmcv's ConvModule: what becomes one unit, and what stays around a packed conv."""

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmgroupnet.deploy import pack
from mmgroupnet.layers.packed import PackedUnit
from tests.liveness import estimate_statistics
from tests.test_deploy.test_packing import as_trained, assert_agrees

pytestmark = pytest.mark.usefixtures('simulated_layers')


class TestConvModule:
    @pytest.fixture(params=[dict(), dict(norm_cfg=dict(type='BN')), dict(bias=True)], ids=str)
    def options(self, request):
        return dict(dict(act_cfg=None), **request.param)

    @pytest.mark.parametrize('conv', ['BinaryConv2d', 'LayerwiseBinaryConv2d'])
    def test_a_conv_with_what_follows_it_is_one_unit(self, options, conv):
        torch.manual_seed(0)
        conv_cfg = dict(type=f'mmgroupnet.{conv}', input_norm=dict(type='BN'))
        if conv == 'LayerwiseBinaryConv2d':
            conv_cfg.update(num_bases=3, learned_scales=True)
        module = ConvModule(20, 12, 3, stride=2, padding=1, conv_cfg=conv_cfg, **options)
        x = torch.randn(2, 20, 11, 14).relu()
        estimate_statistics(module, lambda: module(x))
        packed = pack(module)
        assert isinstance(packed, PackedUnit)
        with torch.no_grad():
            assert_agrees('conv', packed(x), module(x))

    @pytest.mark.parametrize('options', [dict(norm_cfg=dict(type='BN')), dict(norm_cfg=dict(type='GN', num_groups=2))])
    def test_what_cannot_be_fused_stays_behind_a_packed_conv(self, options):
        torch.manual_seed(0)
        module = ConvModule(20, 12, 3, padding=1, conv_cfg=dict(type='mmgroupnet.BinaryConv2d'), **options)
        x = torch.randn(2, 20, 11, 14)
        estimate_statistics(module, lambda: module(x))
        packed = pack(module)
        assert isinstance(packed, ConvModule) and isinstance(packed.conv, PackedUnit)
        with torch.no_grad():
            assert_agrees('conv', packed(x), module(x))

    def test_a_relu_alone_is_fused(self):
        torch.manual_seed(0)
        module = ConvModule(20, 12, 3, padding=1, conv_cfg=dict(type='mmgroupnet.BinaryConv2d')).eval()
        x = torch.randn(2, 20, 11, 14)
        packed = pack(module)
        assert isinstance(packed, PackedUnit) and packed.geometry.relu
        with torch.no_grad():
            assert_agrees('conv', packed(x), module(x))


@pytest.mark.parametrize('conv', ['BinaryConv2d', 'LayerwiseBinaryConv2d'])
def test_a_bias_in_front_of_a_norm(conv):
    torch.manual_seed(0)
    options = dict(conv_cfg=dict(type=f'mmgroupnet.{conv}'), norm_cfg=dict(type='BN'), act_cfg=None)
    module = ConvModule(20, 12, 3, padding=1, bias=True, **options)
    nn.init.normal_(module.conv.bias)
    x = torch.randn(2, 20, 11, 14)
    estimate_statistics(module, lambda: module(x))
    as_trained(module)
    nn.init.normal_(module.norm.running_mean)
    packed = pack(module)
    assert isinstance(packed, PackedUnit)
    with torch.no_grad():
        assert_agrees('conv', packed(x), module(x))


def test_norms_without_weight_and_bias():
    torch.manual_seed(0)
    norm_cfg = dict(type='BN', affine=False)
    conv_cfg = dict(type='mmgroupnet.BinaryConv2d', input_norm=norm_cfg)
    module = ConvModule(12, 10, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=None)
    x = torch.randn(2, 12, 11, 14).relu()
    estimate_statistics(module, lambda: module(x))
    packed = pack(module)
    assert isinstance(packed, PackedUnit)
    with torch.no_grad():
        assert_agrees('module', packed(x), module(x))


@pytest.mark.parametrize(
    'options',
    [
        dict(order=('norm', 'conv', 'act'), norm_cfg=dict(type='BN'), act_cfg=None),
        dict(order=('act', 'conv', 'norm'), norm_cfg=dict(type='BN')),
        dict(act_cfg=dict(type='LeakyReLU', negative_slope=0.5)),
        dict(act_cfg=dict(type='Sigmoid'), norm_cfg=dict(type='BN')),
        dict(padding_mode='reflect', norm_cfg=dict(type='BN'), act_cfg=None),
    ],
    ids=str,
)
def test_what_no_unit_computes_stays_around_a_packed_conv(options):
    torch.manual_seed(0)
    module = ConvModule(12, 12, 3, padding=1, conv_cfg=dict(type='mmgroupnet.BinaryConv2d'), inplace=False, **options)
    x = torch.randn(2, 12, 11, 14)
    estimate_statistics(module, lambda: module(x))
    packed = pack(as_trained(module))
    assert isinstance(packed, ConvModule) and isinstance(packed.conv, PackedUnit)
    with torch.no_grad():
        assert_agrees('module', packed(x), module(x))
