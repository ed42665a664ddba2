"""Operation counts of packed models, compared with those of the models before packing."""

from functools import partial

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from torch import nn

from mmgroupnet.analysis.complexity import analyze, total
from mmgroupnet.analysis.packed_operations import PACKED_HANDLES
from mmgroupnet.deploy import pack
from mmgroupnet.layers import BinaryConv2d, BinaryLinear, LayerwiseBinaryConv2d
from tests.test_deploy.test_packing import build_backbone, pictures
from tests.test_models.test_combinations import BACKBONES, HEADS, NECKS, build


def count(packed: nn.Module, *inputs: torch.Tensor) -> dict[str, int]:
    """Operations that mmengine counts with our handles, by kind."""
    return dict(FlopAnalyzer(packed, inputs).set_op_handle(**PACKED_HANDLES).by_operator())


def binary_operations(model: nn.Module, x: torch.Tensor) -> int:
    return total(analyze(model, lambda: model(x))).bops


@pytest.mark.parametrize(
    ('layer', 'shape', 'expected'),
    [
        (BinaryConv2d(4, 6, 3, padding=1, num_bases=3, groups=2), (2, 12, 5, 7), 3 * 2 * 6 * 5 * 7 * 2 * 9),
        (BinaryConv2d(4, 6, (3, 2), stride=(2, 1)), (1, 4, 5, 7), 6 * 2 * 6 * 4 * 6),
        (LayerwiseBinaryConv2d(4, 6, 3, padding=1, num_bases=3), (2, 4, 5, 7), 3 * 2 * 6 * 5 * 7 * 4 * 9),
        (BinaryLinear(4, 6), (2, 7, 4), 2 * 7 * 4 * 6),
    ],
    ids=['folded', 'strided', 'layerwise', 'linear'],
)
def test_single_layers(layer, shape, expected):
    x = torch.zeros(shape)
    assert count(pack(layer), x) == dict(binary=expected)
    assert binary_operations(pack(layer), x) == binary_operations(layer, x) == expected


def test_float_layers_are_counted_beside_them():
    conv_cfg = dict(type='mmgroupnet.BinaryConv2d')
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ConvModule(8, 4, 1, conv_cfg=conv_cfg, norm_cfg=dict(type='BN')))
    assert count(pack(model.eval()), torch.zeros(1, 3, 7, 8))['conv'] == 8 * 3 * 9 * 5 * 6


@pytest.mark.parametrize(
    'options',
    [
        dict(decomposition='lbd'),
        dict(decomposition='gbd_v3'),
        dict(decomposition='soft_gate', avg_down=True),
        dict(decomposition='gbd_v1', binary_downsample=False),
    ],
    ids=str,
)
def test_packed_blocks_do_what_simulated_ones_do(options):
    model = build_backbone(num_bases=2, base_channels=8, **options)
    packed, x = pack(model), pictures()
    expected = binary_operations(model, x)
    assert binary_operations(packed, x) == count(packed, x)['binary'] == expected > 1e6


def test_a_shared_shortcut_of_one_map_is_computed_once():
    """In the simulated model each branch computes it again."""
    model = build_backbone(num_bases=2, base_channels=8, decomposition='gbd_v1')
    packed, x = pack(model), torch.zeros(1, 3, 64, 64)
    # Input channels and output sizes of the three shortcuts.
    copies = sum(channels * 2 * channels * size * size for channels, size in ((8, 8), (16, 4), (32, 2)))
    assert binary_operations(model, x) - count(packed, x)['binary'] == copies


def test_mmengine_describes_a_packed_detector():
    """Calls mmengine in the same way as mmdet's tools/analysis_tools/get_flops.py, without our handles: mmengine counts
    only the float layers."""
    packed = pack(build(BACKBONES['binary'], NECKS['binary'], HEADS['binary']).eval())
    x = pictures(96, 160)
    everything = count(packed, x)
    packed.forward = partial(packed.forward, data_samples=None)
    described = get_model_complexity_info(packed, None, inputs=x, show_table=True, show_arch=True)
    assert described['flops'] == sum(everything.values()) - everything['binary'] > everything['conv'] > 0
    assert described['params'] == sum(parameter.numel() for parameter in packed.parameters())
    assert 'bbox_head.conv_cls' in described['out_table'] and 'PackedTower' in described['out_arch']
