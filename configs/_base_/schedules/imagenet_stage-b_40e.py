# Second of two stages on ImageNet, as in Group-Net's released code: Adam 5e-4 at batch 256, no weight decay, divided
# by 10 after epochs 20 and 30.
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(optimizer=dict(type='Adam', lr=5e-4, fused=True))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[20, 30], gamma=0.1)
auto_scale_lr = dict(enable=False, base_batch_size=256)
