# Short trainings from scratch on small data: AdamW, linear warm-up, cosine decay over all epochs of train_cfg.
# The learning rate is high, because a binary weight changes only when its latent weight crosses zero. There is no
# weight decay, which would only pull latent weights towards zero.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=9, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-3, weight_decay=0.0, fused=True),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=5e-5, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
