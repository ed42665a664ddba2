# FCN-32s on CamVid's whole frames: at output stride 8 the maps have 45x60 pixels, about as many as the paper's.
_base_ = './fcn-32s_groupnet_r18_camvid-240x180.py'

scale = (480, 360)
train_pipeline = [dict(step, scale=scale) if step['type'] == 'Resize' else step for step in _base_.train_pipeline]
test_pipeline = [dict(step, scale=scale) if step['type'] == 'Resize' else step for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(data_preprocessor=dict(size=(360, 480)))
# A step takes four times as long as on half the size.
train_cfg = dict(max_epochs=3, val_interval=3)
