# Default policy: backbone, neck and heads binary, K = 4. docs/binarize.md lists what a rule may contain.
num_bases = 4
# One scale per output channel: the bases approximate pretrained weights better than with one per layer.
binary_cfg = dict(weight=dict(type='mmgroupnet.ChannelScaleWeight'))

# Layers that read the image.
first_layers = [
    'backbone.conv1',  # ResNet and its variants, HRNet, RegNet, MobileNetV2, ShuffleNetV2, Darknet
    'backbone.stem',  # deep stems, CSPDarknet, CSPNeXt, ResNeSt, DenseNet
    'backbone.features.0',  # VGG
    'backbone.layers.0.conv',  # EfficientNet
    'backbone.layers.0.0',  # MiT
    'backbone.patch_embed',  # Swin, ViT
    'backbone.downsample_layers.0',  # ConvNeXt
    'backbone.stages.0.0',  # STDC
    'backbone.context_path.backbone.conv1',  # BiSeNet
    'backbone.context_path.backbone.stem',
    'backbone.spatial_path.layer1',
]
# Layers that predict.
last_layers = [
    '*.conv_seg',  # all decode heads
    '*head.fc',  # classification
    'backbone.classifier.6',  # VGG
    '*head.fc_cls',
    '*head.fc_reg',
    '*head.?.fc_cls',  # cascades
    '*head.?.fc_reg',
    '*head.rpn_cls',
    '*head.rpn_reg',
    '*head.conv_cls',
    '*head.conv_reg',
    '*head.conv_centerness',
    '*head.retina_cls',
    '*head.retina_reg',
    '*head.atss_cls',
    '*head.atss_reg',
    '*head.atss_centerness',
    '*head.gfl_cls',
    '*head.gfl_reg',
    '*head.tood_cls',
    '*head.tood_reg',
    '*head.vfnet_*',
    '*head.reppoints_*_out',
    '*head.rtm_cls',
    '*head.rtm_reg',
    '*head.rtm_obj',
    '*head.multi_level_conv_*',  # YOLOX
    '*head.convs_pred',  # YOLOv3
    '*head.heatmap_head.2',  # CenterNet
    '*head.wh_head.2',
    '*head.offset_head.2',
    '*head.conv_logits',  # masks
    '*head.?.conv_logits',
    '*head.conv_mask_list',  # SOLO
    '*.mask_feature',  # Mask2Former
    '*head.cls_embed',
    '*head.mask_embed',
    '*head.cls_branches',  # DETR and its variants
    '*head.reg_branches',
    '*head.?.fc_mask',
]
# Blocks of convs with a skip around them, without those with depthwise convs, which would be copied K times.
residual_blocks = [
    'BasicBlock',
    'Bottleneck',  # of ResNeXt, Res2Net (Bottle2neck), ResNeSt and SENet, too
    'DarknetBottleneck',
    'ResBlock',
]

# The 1x1 convs between a backbone and a pyramid: binary ones would pass only signs.
laterals = ['neck.lateral_convs']

# Channel gates read one pixel per image and cost almost no time. The gate of TOOD multiplies the weights of a conv.
channel_gates = ['SELayer', 'TaskDecomposition']

backbone_rules = [
    dict(
        become='groupwise',
        types=residual_blocks,
        names='backbone',
        num_bases=num_bases,
        binary_cfg=binary_cfg,
        skip=True,  # a stock block ends in a ReLU, so nothing else bypasses its signs
        optional=True,
    ),
    dict(become='layerwise', names='backbone', num_bases=num_bases, binary_cfg=binary_cfg, optional=True),
]

policy = [
    dict(become='keep', names=first_layers),
    dict(become='keep', names=last_layers),
    dict(become='keep', types=channel_gates, optional=True),
    *backbone_rules,
    # Necks and heads start from random weights, so they lose nothing by skips, which pass real values.
    dict(become='keep', names=laterals, optional=True),
    dict(become='layerwise', names='neck', num_bases=num_bases, binary_cfg=binary_cfg, skip=True, optional=True),
    # Heads share their convs between pyramid levels, whose statistics differ: hence no batch norm.
    dict(
        become='layerwise',
        num_bases=num_bases,
        binary_cfg=binary_cfg,
        input_norm=dict(type='GN', num_groups=32),
        skip=True,
        optional=True,
    ),
]
