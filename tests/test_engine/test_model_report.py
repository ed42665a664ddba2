import pytest
import torch
from mmdet.datasets.transforms import Resize
from mmengine.config import Config

from mmgroupnet.checkpoints.pretrained import leave_out_pretrained
from mmgroupnet.engine.binarize_option import binarize_config
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.model_report import (
    count_parameters,
    describe_model,
    forward_call,
    input_channels,
    input_size,
    measure_complexity,
)
from mmgroupnet.engine.models import build_model
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from tests.tiny_run import load_tiny_run, write_tiny_run


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', (800, 1344)),
        ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', (416, 416)),
        ('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', (1024, 2048)),
        ('mmseg::upernet/upernet_r18_4xb4-20k_voc12aug-512x512.py', (512, 2048)),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', (224, 224)),
        ('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py', None),
        ('configs/detection/fcos_r18_bccd.py', (240, 320)),
    ],
)
def test_input_size(name, size):
    assert input_size(load_config(name)) == size


def test_input_size_of_a_config_with_classes_in_place_of_names(tmp_path):
    cfg = load_tiny_run(tmp_path)
    resize = cfg.test_dataloader.dataset.pipeline[1]
    assert resize.type == 'Resize'
    resize.type = Resize
    assert input_size(cfg) == (64, 64)
    resize.type = 'mmdet.datasets.transforms.Resize'
    assert input_size(cfg) == (64, 64)


@pytest.mark.parametrize(
    ('in_channels', 'means', 'channels'),
    [(None, 3, 3), (1, 1, 1), (4, 4, 4), (4, None, 4), (None, 1, 3), (None, None, 3)],
)
def test_images_of_other_channels_are_counted(tmp_path, in_channels, means, channels):
    statistics = dict(mean=None, std=None) if means is None else dict(mean=[127.5] * means, std=[60.0] * means)
    backbone = dict(
        type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8, stage_blocks=(1,), strides=(1,),
        dilations=(1,), out_indices=(0,)
    )  # fmt: skip
    if in_channels is not None:
        backbone['in_channels'] = in_channels
    head = dict(type='mmseg.FCNHead', in_channels=8, channels=8, num_convs=0, concat_input=False, num_classes=2)
    preprocessor = dict(type='mmseg.SegDataPreProcessor', **statistics)
    model = dict(type='mmseg.EncoderDecoder', data_preprocessor=preprocessor, backbone=backbone, decode_head=head)
    cfg = Config(dict(default_scope='mmseg', model=model))
    cfg.model.test_cfg = dict(mode='whole')
    built = build_model(cfg)
    assert input_channels(cfg, built) == channels
    text = describe_model(cfg, built, size=(32, 32), per_layer=True)
    assert text.startswith('Input 32x32')
    stem = next(line for line in text.splitlines() if line.startswith('backbone.stem.0 '))
    assert f'{16 * 16 * 49 * channels * 8:.4g}' in stem


def test_one_mean_for_a_model_of_one_channel_that_its_config_does_not_name():
    model = dict(type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=10), head=dict(type='ClsHead'))
    preprocessor = dict(mean=[33.46], std=[78.87])
    cfg = Config(dict(default_scope='mmpretrain', model=model, data_preprocessor=preprocessor))
    assert input_channels(cfg, build_model(cfg)) == 1
    assert describe_model(cfg, size=(32, 32)).startswith('Input 32x32')


def test_a_table_of_parts(tmp_path):
    text = describe_model(load_tiny_run(tmp_path))
    assert text.startswith('Input 64x64 (height x width); ')  # 48x64, padded to a multiple of 32
    assert [line.split()[0] for line in text.splitlines()[2:]] == [
        'backbone.stem', 'backbone.stages.0', 'backbone.stages.1', 'backbone.stages.2', 'neck', 'bbox_head', 'total'
    ]  # fmt: skip


def test_a_table_of_layers(tmp_path):
    text = describe_model(load_tiny_run(tmp_path), size=(32, 32), per_layer=True)
    line = next(line for line in text.splitlines() if line.startswith('backbone.stages.0.0.units.0.conv '))
    bops = 2 * 8 * 8 * 9 * 8 * 8  # two branches, 8 to 8 channels, on 8x8
    assert line.split()[-3:-1] == [f'{bops:.4g}', f'{bops / 64:.4g}']


def test_without_a_size_there_are_no_operations(tmp_path):
    cfg = load_tiny_run(tmp_path)
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile')]
    text = describe_model(cfg)
    assert text.startswith('Operations are not counted: the test pipeline does not say')
    assert 'BOPs' not in text


def test_a_model_that_cannot_be_called_so(tmp_path):
    cfg = load_tiny_run(tmp_path)
    model = build_model(cfg)
    model.forward = lambda *args, **kwargs: 1 / 0
    assert 'FCOS cannot be called so (division by zero)' in describe_model(cfg, model)


def outputs_of_narrow(name, options, policy=None):
    """Raw predictions of a stock ResNet-50 detector with a narrow backbone, for one picture of 64x64."""
    cfg = load_config(name)
    leave_out_pretrained(cfg)
    narrow = {'model.backbone.base_channels': 8, 'model.neck.in_channels': [32, 64, 128, 256]}
    cfg.merge_from_dict(narrow | options)
    if policy is not None:
        binarize_config(cfg, policy)
    model = build_model(Config(cfg.to_dict())).eval()
    with torch.no_grad():
        (outputs,) = forward_call(model, torch.zeros(1, 3, 64, 64))()
    return outputs


@pytest.mark.parametrize(
    'policy', [None, [dict(become='layerwise', names='neck', num_bases=1)]], ids=['float', 'binary']
)
@pytest.mark.parametrize(
    'name',
    [
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'mmdet::cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    ],
    ids=['RPN', 'CascadeRPN'],
)
def test_a_detector_gets_as_many_proposals_as_it_may_have(name, policy):
    options = {'model.roi_head.bbox_head.fc_out_channels': 8, 'model.test_cfg.rpn.max_per_img': 7}
    outputs = outputs_of_narrow(name, options, policy)
    assert [out.shape for out in outputs] == [(7, 81), (7, 320)]


def test_all_learned_proposals_are_refined_and_get_masks():
    """The model is QueryInst, a Sparse R-CNN with masks; its untrained weights give boxes without area."""
    stages = outputs_of_narrow('mmdet::queryinst/queryinst_r50_fpn_1x_coco.py', {'model.rpn_head.num_proposals': 7})
    assert len(stages) == 6
    for boxes, masks in stages:
        assert boxes['cls_score'].shape == (1, 7, 80)
        assert masks['mask_preds'].shape == (7, 80, 28, 28)


def test_a_packed_model(tmp_path):
    cfg = load_tiny_run(tmp_path)
    cfg.model = dict(type='mmgroupnet.Packed', model=cfg.model)
    with pytest.raises(UserError, match='mmgroupnet.Packed.*give the model inside it'):
        describe_model(cfg)


def test_parameters_of_a_config(tmp_path):
    """The 1-bit parameters are the weights of all binary convs."""
    config = write_tiny_run(tmp_path)
    model = build_model(Config.fromfile(config))
    bits = sum(module.weight.numel() for module in model.modules() if isinstance(module, BinaryConv2d))
    assert count_parameters(str(config)) == (sum(value.numel() for value in model.parameters()), bits)


def test_complexity_of_a_config(tmp_path):
    """The values equal the last line of the table. If the size of the images is unknown, there are no operations."""
    config = write_tiny_run(tmp_path)
    whole = measure_complexity(str(config))
    last_line = describe_model(Config.fromfile(config)).splitlines()[-1].split()
    assert last_line[-4:-1] == [f'{value:.4g}' for value in (whole.flops, whole.bops, whole.ops)]
    config.write_text(config.read_text() + '\ntest_dataloader = val_dataloader = None\n')
    without_size = measure_complexity(str(config))
    assert (without_size.flops, without_size.bops) == (0, 0)
    assert without_size.parameters == whole.parameters
