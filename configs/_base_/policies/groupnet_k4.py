# Default policy: backbone, neck and heads binary, K = 4. docs/binarize.md lists what a rule may contain.
num_bases = 4
# One scale per output channel: the bases approximate pretrained weights better than with one per layer.
binary_cfg = dict(weight=dict(type='mmgroupnet.ChannelScaleWeight'))

# Layers that read the image.
first_layers = [
    'backbone.conv1',  # ResNet and its variants, HRNet, RegNet, MobileNetV2, ShuffleNet, Darknet
    # Of ResNeSt, DenseNet, CSPDarknet, CSPNeXt, CGNet, hourglasses and ResNets with deep stems. In DDRNet and PIDNet it
    # contains the first two stages.
    'backbone.stem',
    'backbone.features.0',  # VGG
    'backbone.layer0',  # MobileNetV3
    'backbone.layers.0.conv',  # EfficientNet
    'backbone.layers.0.0',  # MiT, PVT
    'backbone.stage0',  # MobileOne
    'backbone.Conv2d_1a_3x3',  # Inception
    'backbone.patch_embed',  # Swin, ViT
    'backbone.patch_embed1',  # MSCAN, VAN
    'backbone.patch_embeds.0',  # Twins
    'backbone.pixel_embed',  # TNT
    'backbone.downsample_layers.0',  # ConvNeXt
    'backbone.encoder.0.conv',  # ERFNet
    'backbone.encoder.0.0.convs.0',  # UNet
    'backbone.learning_to_downsample.conv',  # FastSCNN
    'backbone.backbone.stages.0',  # STDC
    'backbone.backbone.stem',  # ICNet
    'backbone.conv_sub1.0',
    'backbone.context_path.backbone.conv1',  # BiSeNet
    'backbone.context_path.backbone.stem',
    'backbone.spatial_path.layer1',
    'backbone.detail.detail_branch.0.0',  # BiSeNetV2
    'backbone.semantic.stage1.conv_first',
    'neck.rfp_modules.?.conv1',  # DetectoRS
]
# Blocks of convs with a skip around them, without those with depthwise convs, which would be copied K times.
residual_blocks = [
    'BasicBlock',
    'Bottleneck',  # of ResNeXt, Res2Net (Bottle2neck), ResNeSt and SENet, too
    'DarknetBottleneck',
    'ResBlock',
]
# Parts whose residual blocks cannot be a group: those of TridentNet pass three maps on, those of DetectoRS read two.
without_groups = ['TridentBottleneck', 'DetectoRS_ResNet', 'DetectoRS_ResNeXt']

# In necks and heads the convs inside a ConvModule or a block are hidden. A bare conv predicts or gates, and stays in
# float: a head that this file does not know keeps its predictions.
hidden_modules = ['ConvModule', 'SimplifiedBasicBlock', *residual_blocks]
# The exceptions: bare convs that are hidden ...
bare_hidden_layers = [
    '*rpn_conv',
    '*.reppoints_pts_*_conv',
    '*.heatmap_head.0',  # CenterNet
    '*.wh_head.0',
    '*.offset_head.0',
    '*.protonet.[0248]',  # YOLACT, whose protonet.10 predicts
    '*.mask_iou_head.convs',
    'neck.fpn_conv',  # YOLOF
]
# ... and ConvModules that predict.
last_modules = [
    '*.mask_feature_head.conv_pred',  # SOLOv2
    '*.[bt][lr]_heat.?.1',  # CornerNet and CentripetalNet
    '*.[bt][lr]_emb.?.1',
    '*.[bt][lr]_off.?.1',
    '*.[bt][lr]_*_shift.?.1',
    '*.[bt][lr]_dcn_offset',
    '*.feat_transform',  # K-Net, which multiplies it by masks
]
# Linears that predict. The policy leaves all linears in float; these stay so behind a further rule for linears.
last_linears = [
    '*head.fc',
    '*head.fc_cls',
    '*head.fc_reg',
    '*head.?.fc_cls',
    '*head.?.fc_reg',
    '*head.?.fc_mask',
    '*head.cls_embed',
    '*head.mask_embed',
    '*head.cls_branches',
    '*head.reg_branches',
    'backbone.classifier.6',  # VGG
]
# The 1x1 convs between a backbone and a pyramid: binary ones would pass only signs.
laterals = ['*lateral_convs', '*lateral_conv', '*.input_convs', '*.adapt_convs', '*.reduction_conv']
lateral_modules = ['ChannelMapper']

# Gates read one pixel per image and cost almost no time.
gates = [
    'SELayer',
    'DyReLU',
    'ChannelAttention',  # CSPNeXt
    'ContextBlock',  # GCNet
    'AttentionRefinementModule',  # BiSeNet
]
# Queries and keys, whose products a softmax compares.
attention = ['_NonLocalNd', 'SelfAttentionBlock']
# Modules that read the weights of their convs themselves.
readers_of_weights = [
    'TaskDecomposition',  # TOOD
    'DCM',  # DMNet
    'SAConv2d',  # DetectoRS
    'PositionEncodingFourier',  # EdgeNeXt
    'PositionalEncodingFourier',  # XCiT
]
float_modules = [*gates, *attention, *readers_of_weights]

backbone_rules = [
    dict(
        become='layerwise',
        types=without_groups,
        num_bases=num_bases,
        binary_cfg=binary_cfg,
        optional=True,
    ),
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
# Necks and heads start from random weights, so they lose nothing by skips, which pass real values.
neck_rules = [
    dict(become='keep', names=laterals, optional=True),
    dict(become='keep', types=lateral_modules, optional=True),
    dict(
        become='layerwise',
        names='neck',
        types=hidden_modules,
        num_bases=num_bases,
        binary_cfg=binary_cfg,
        skip=True,
        optional=True,
    ),
]
# Heads share their convs between pyramid levels, whose statistics differ: hence no batch norm.
head_rule = dict(
    become='layerwise',
    num_bases=num_bases,
    binary_cfg=binary_cfg,
    input_norm=dict(type='GN', num_groups=32),
    skip=True,
    optional=True,
)

policy = [
    dict(become='keep', names=first_layers),
    dict(become='keep', types=float_modules, optional=True),
    dict(become='keep', names=[*last_modules, *last_linears], optional=True),
    *backbone_rules,
    *neck_rules,
    dict(head_rule, types=hidden_modules),
    dict(head_rule, names=bare_hidden_layers),
]
