# FCN-32s on VOC 2012: Group-Net ResNet-18 at output stride 8, dilation 2 and 4 on every branch.
_base_ = [
    '../_base_/models/fcn-32s_groupnet_r18.py',
    '../_base_/datasets/voc12aug_480x480.py',
    '../_base_/schedules/adam_poly.py',
    '../_base_/segmentation_runtime.py',
]

# Classification checkpoint of the same backbone; None trains it from scratch.
backbone_checkpoint = None
