# The float twin of fcos_groupnet_r18_bccd.py with its binary backbone.
_base_ = 'fcos_r18_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmgroupnet.GroupNetResNet',
        depth=18,
        base_channels=32,
        num_bases=4,
        binary_downsample=False,
        avg_down=True,
        binary_cfg=dict(weight=dict(type='mmgroupnet.ChannelScaleWeight')),
    )
)
