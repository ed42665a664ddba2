# First of two stages on ImageNet, as in Group-Net's released code: SGD 0.05 at batch 256, divided by 10 after epochs 25
# and 35.
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[25, 35], gamma=0.1)
auto_scale_lr = dict(enable=False, base_batch_size=256)
