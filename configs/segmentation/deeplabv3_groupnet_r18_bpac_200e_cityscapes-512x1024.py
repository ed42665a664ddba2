# DeepLabV3 on Cityscapes, all binary: Group-Net ResNet-18 with BPAC, binary ASPP head.
_base_ = [
    '../_base_/models/deeplabv3_groupnet_r18.py',
    'mmseg::_base_/datasets/cityscapes.py',
    '../_base_/schedules/adam_poly.py',
    '../_base_/segmentation_runtime.py',
]

# Classification checkpoint of the same backbone; None trains it from scratch.
backbone_checkpoint = None

train_dataloader = dict(batch_size=8, drop_last=True, sampler=dict(type='DefaultSampler'))
train_cfg = dict(max_epochs=200, val_interval=20)
auto_scale_lr = dict(base_batch_size=8)
