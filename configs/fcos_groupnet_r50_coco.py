# FCOS on COCO, 1x, all binary (backbone, neck, head): Group-Net ResNet-50 with K = 5 bases.
#   python tools/train.py configs/fcos_groupnet_r50_coco.py
#   tools/dist_train.sh configs/fcos_groupnet_r50_coco.py 8 --auto-scale-lr
# The number of bases is `num_bases` of configs/_base_/models/fcos_groupnet_r50.py.
_base_ = [
    '_base_/models/fcos_groupnet_r50.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/schedules/fcos_1x.py',
    '_base_/default_runtime.py',
]

# A classification checkpoint of the same backbone, trained on ImageNet. Published Group-Net detectors start from one;
# COCO 1x from scratch (None) will not reach their figures.
backbone_checkpoint = None
