"""Policies, and the configs that use one to binarise a stock model."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from benchmarks.stock_configs import Run
from mmgroupnet.checkpoints.pretrained import leave_out_pretrained
from mmgroupnet.converters.policy import decide, parse_policy
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.binarize_option import binarize_config, load_policy
from mmgroupnet.engine.configs import load_config, read_config_file
from mmgroupnet.engine.models import build_model
from mmgroupnet.layers import BinaryConv2d, GroupwiseChain, RealValuedSkip

FOLDER = Path(__file__).parents[1] / 'configs'
DEFAULT = FOLDER / '_base_/policies/groupnet_k4.py'
POLICIES = sorted((FOLDER / '_base_/policies').glob('*.py'))
CONFIGS = sorted(path for path in (FOLDER / 'binarized').glob('*.py') if 'groupnet' in path.name)
FLOAT_TWIN = FOLDER / 'binarized/retinanet_r18_half_bccd.py'


def narrow(path: Path) -> Config:
    """A config with a thin backbone and two bases, without pretrained weights."""
    cfg = read_config_file(path)
    inner = cfg.model.model
    expansion = 1 if inner.backbone.depth == 18 else 4
    widths = [16 * 2**stage * expansion for stage in range(4)]
    inner.backbone.base_channels = 16
    if cfg.default_scope == 'mmdet':
        inner.neck.in_channels = widths
    else:
        inner.decode_head.in_channels, inner.auxiliary_head.in_channels = widths[3], widths[2]
        if 'c1_in_channels' in inner.decode_head:
            inner.decode_head.c1_in_channels = widths[0]
    for rule in cfg.model.policy:
        if 'num_bases' in rule:
            rule.num_bases = 2
    leave_out_pretrained(cfg)
    return cfg


@pytest.mark.parametrize('path', POLICIES, ids=lambda path: path.stem)
def test_first_layers_are_on_top(path):
    rules = parse_policy(load_policy(str(path)))
    becomes = [rule.become for rule in rules]
    keeps = becomes[: next(index for index, become in enumerate(becomes) if become != 'keep')]
    first = next(rule for rule in rules if 'backbone.conv1' in rule.names)
    assert first in rules[: len(keeps)]


# Layers of stock models that predict, read the image or compute weights, and have to stay in float; hidden layers that
# become binary.
LAYERS = {
    'mmdet::sabl/sabl-retinanet_r50_fpn_1x_coco.py': (
        'bbox_head.retina_cls bbox_head.retina_bbox_cls bbox_head.retina_bbox_reg',
        'bbox_head.cls_convs.0.conv neck.fpn_convs.0.conv',
    ),
    'mmdet::cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py': (
        'rpn_head.stages.0.rpn_reg rpn_head.stages.1.rpn_cls rpn_head.stages.1.rpn_reg',
        'rpn_head.stages.0.rpn_conv.conv',
    ),
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py': (
        'rpn_head.rpn_cls rpn_head.rpn_reg',
        'rpn_head.rpn_conv roi_head.shared_head.layer4.0.conv1',
    ),
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': (
        'bbox_head.controller bbox_head.conv_cls bbox_head.conv_centerness mask_head.mask_feature_head.conv_pred',
        'mask_head.mask_feature_head.conv_branch.0.conv',
    ),
    'mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py': (
        'bbox_head.rtm_kernel.0 bbox_head.rtm_cls.0 bbox_head.mask_head.projection',
        'bbox_head.kernel_convs.0.0.conv',
    ),
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': (
        'mask_head.conv_kernel mask_head.conv_cls mask_head.mask_feature_head.conv_pred.conv',
        'mask_head.kernel_convs.0.conv',
    ),
    'mmdet::solo/decoupled-solo_r50_fpn_1x_coco.py': (
        'mask_head.conv_mask_list_x.0 mask_head.conv_mask_list_y.4',
        'mask_head.mask_convs_x.0.conv',
    ),
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py': (
        'bbox_head.conv_cls bbox_head.conv_coeff mask_head.protonet.10 mask_head.segm_branch.segm_conv',
        'mask_head.protonet.0 mask_head.protonet.8',
    ),
    'mmdet::ddod/ddod_r50_fpn_1x_coco.py': ('bbox_head.atss_iou bbox_head.atss_cls', 'neck.fpn_convs.0.conv'),
    'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py': (
        'neck.0.lateral_convs.0.conv neck.1.dyhead_blocks.0.task_attn_module.conv1.conv',
        'neck.0.fpn_convs.0.conv',
    ),
    'mmdet::hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py': ('neck.reduction_conv.conv', 'neck.fpn_convs.0.conv'),
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py': (
        'neck.lateral_conv bbox_head.cls_score bbox_head.bbox_pred bbox_head.object_pred',
        'neck.fpn_conv neck.dilated_encoder_blocks.0.conv2.conv bbox_head.cls_subnet.0.conv',
    ),
    'mmdet::pisa/ssd300_pisa_coco.py': (
        'backbone.features.0 bbox_head.cls_convs.0.0 bbox_head.reg_convs.5.0',
        'backbone.features.2 neck.extra_layers.0.0.conv',
    ),
    'mmdet::centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco.py': (
        'bbox_head.tl_heat.0.1.conv bbox_head.br_off.0.1.conv '
        'bbox_head.tl_guiding_shift.0.1.conv bbox_head.br_centripetal_shift.1.1.conv bbox_head.tl_dcn_offset.0.conv',
        'bbox_head.tl_heat.0.0.conv bbox_head.tl_guiding_shift.0.0.conv bbox_head.br_pool.0.conv1.conv',
    ),
    'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py': (
        'bbox_head.tl_emb.0.1.conv bbox_head.br_emb.1.1.conv',
        'bbox_head.br_emb.1.0.conv',
    ),
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py': (
        'bbox_head.heatmap_head.2 bbox_head.wh_head.2 bbox_head.offset_head.2',
        'bbox_head.heatmap_head.0 bbox_head.wh_head.0 bbox_head.offset_head.0',
    ),
    'mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py': (
        'neck.rfp_modules.0.conv1 neck.rfp_modules.0.layer2.0.conv2.switch',
        'neck.fpn_convs.0.conv',
    ),
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py': (
        'decode_head.p_cls_seg decode_head.d_cls_seg decode_head.conv_seg backbone.stem.0.conv',
        'decode_head.i_head.conv.conv',
    ),
    'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py': (
        'decode_head.aux_cls_seg decode_head.conv_seg',
        'decode_head.head.0.conv',
    ),
    'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py': (
        'decode_head.lateral_convs.0.conv decode_head.conv_seg',
        'decode_head.fpn_convs.0.conv decode_head.psp_modules.0.1.conv',
    ),
    'mmdet::gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco.py': (
        'backbone.layer2.0.context_block.conv_mask backbone.layer2.0.context_block.channel_add_conv.0',
        'backbone.layer2.0.conv1',
    ),
    'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py': (
        'backbone.context_path.arm16.atten_conv_layer.1.conv',
        'backbone.spatial_path.layer2.conv',
    ),
    'mmseg::dnlnet/dnl_r50-d8_4xb2-40k_cityscapes-512x1024.py': (
        'decode_head.dnl_block.theta.conv decode_head.dnl_block.g.conv',
        'decode_head.convs.0.conv',
    ),
    'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py': (
        'decode_head.kernel_update_head.0.feat_transform.conv decode_head.kernel_generate_head.conv_seg',
        'decode_head.kernel_generate_head.convs.0.conv',
    ),
    'mmseg::dmnet/dmnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': (
        'decode_head.dcm_modules.0.filter_gen_conv',
        'decode_head.bottleneck.conv',
    ),
    'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py': (
        'backbone.backbone.stages.0.conv',
        'backbone.backbone.stages.1.conv',
    ),
    'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py': (
        'backbone.encoder.0.0.convs.0.conv',
        'backbone.encoder.0.0.convs.1.conv',
    ),
    'mmseg::icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py': (
        'backbone.backbone.stem.0 backbone.conv_sub1.0.conv',
        'backbone.conv_sub1.1.conv',
    ),
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py': (
        'backbone.detail.detail_branch.0.0.conv backbone.semantic.stage1.conv_first.conv',
        'backbone.detail.detail_branch.0.1.conv',
    ),
}


def becomes_by_layer(name: str, policy: list) -> dict[str, str]:
    """What each layer of a stock model becomes."""
    library = name.partition('::')[0]
    import_module(f'{library}.utils').register_all_modules(False)
    cfg = load_config(name)
    leave_out_pretrained(cfg)
    with torch.device('meta'):
        model = build_model(cfg)
    decisions = decide(model, parse_policy(policy))
    return {
        layer: 'keep' if decision.rule is None or decision.problem else decisions.rules[decision.rule].become
        for decision in decisions.layers
        for layer in decision.names
    }


@pytest.mark.parametrize('name', LAYERS, ids=lambda name: Path(name).stem.split('_8xb')[0])
def test_the_default_policy_keeps_predictions_and_gates(name):
    becomes = becomes_by_layer(name, load_policy(str(DEFAULT)))
    kept, binary = LAYERS[name]
    assert {layer: becomes[layer] for layer in kept.split()} == dict.fromkeys(kept.split(), 'keep')
    assert [layer for layer in binary.split() if becomes[layer] == 'keep'] == []


@pytest.mark.parametrize(
    ('name', 'kept', 'binary'),
    [
        ('mmpretrain::vgg/vgg11bn_8xb32_in1k.py', 'backbone.classifier.6', 'backbone.classifier.3'),
        (
            'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
            'roi_head.bbox_head.1.fc_cls',
            'roi_head.bbox_head.1.shared_fcs.0',
        ),
        (
            'mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
            'roi_head.bbox_head.fc_reg',
            'roi_head.bbox_head.fc_branch.0',
        ),
        (
            'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
            'bbox_head.cls_branches.0',
            'encoder.layers.0.ffn.layers.1',
        ),
    ],
)
def test_a_rule_for_linears_behind_the_default_policy(name, kept, binary):
    rule = dict(become='layerwise', types='Linear', num_bases=2)
    becomes = becomes_by_layer(name, [*load_policy(str(DEFAULT)), rule])
    assert becomes[kept] == 'keep'
    assert any(value == 'layerwise' for layer, value in becomes.items() if layer.startswith(binary))


@pytest.mark.parametrize(
    ('policy', 'binary_parts'),
    [
        ('groupnet_k4', ['backbone', 'neck', 'bbox_head']),
        ('groupnet_k4_backbone', ['backbone']),
        ('groupnet_k4_backbone-neck', ['backbone', 'neck']),
        ('groupnet_k4_float-downsample', ['backbone', 'neck', 'bbox_head']),
    ],
)
def test_parts_of_a_policy(policy, binary_parts):
    cfg = read_config_file(FLOAT_TWIN)
    binarize_config(cfg, load_policy(str(FOLDER / f'_base_/policies/{policy}.py')))
    model = build_model(cfg)
    found = [
        name
        for name, part in model.named_children()
        if any(isinstance(module, BinaryConv2d) for module in part.modules())
    ]
    assert found == binary_parts
    chains = [module for module in model.modules() if isinstance(module, GroupwiseChain)]
    assert [len(chain.blocks) for chain in chains] == [2] * 4
    downsample = chains[1].blocks[0].branches[0].downsample[0]
    assert isinstance(downsample, BinaryConv2d) == (policy != 'groupnet_k4_float-downsample')
    assert isinstance(model.backbone.conv1, torch.nn.Conv2d)
    assert all(type(lateral.conv) is torch.nn.Conv2d for lateral in model.neck.lateral_convs)
    # Backbone: four branches with two blocks per stage; in three of the four stages the first conv changes the shape,
    # so it has no skip. Neck: three output convs; the fourth halves the size. Head: two towers of two convs.
    expected = dict(backbone=4 * (4 + 3 * 3), neck=3, bbox_head=4)
    for part, number in expected.items():
        skips = [module for module in model.get_submodule(part).modules() if isinstance(module, RealValuedSkip)]
        assert len(skips) == (number if part in binary_parts else 0)


def test_every_kind_of_detector_and_segmentor_is_there():
    kinds = {path.stem.split('_groupnet_')[0] for path in CONFIGS}
    assert kinds == {'retinanet', 'faster-rcnn', 'mask-rcnn', 'atss', 'deeplabv3plus', 'pspnet'}
    assert len(CONFIGS) == 2 * len(kinds)


def without_scope(node: object) -> object:
    """A config without the key that mmengine adds to configs from other libraries."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != '_scope_'}
    return [without_scope(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_is_the_stock_config_and_the_default_policy(path):
    cfg = read_config_file(path)
    check_arguments(cfg)
    assert cfg.model.to_dict()['policy'] == load_policy(str(FOLDER / '_base_/policies/groupnet_k4.py'))
    text = (path.with_name(path.name.replace('r18', 'r50')) if cfg.default_scope == 'mmdet' else path).read_text()
    stock = load_config(next(part for part in text.split("'") if '::' in part))
    inner = cfg.model.model
    assert inner.type == stock.model.type
    assert inner.backbone.depth == (18 if 'r18' in path.stem else 50)
    for part in ('train_dataloader', 'optim_wrapper'):
        assert without_scope(cfg[part].to_dict()) == stock[part].to_dict()


@pytest.mark.parametrize(
    'path', [pytest.param(path, marks=[pytest.mark.slow] * ('r50' in path.stem), id=path.stem) for path in CONFIGS]
)
def test_every_binary_layer_is_alive(path):
    cfg = narrow(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        lowest, highest = Run(cfg).check_alive()
    assert 0.02 <= lowest <= highest <= 0.98
