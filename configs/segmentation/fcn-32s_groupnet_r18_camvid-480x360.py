# FCN-32s on CamVid's whole frames: at output stride 8 the maps have 45x60 pixels, about as many as the paper's.
_base_ = './fcn-32s_groupnet_r18_camvid-240x180.py'

train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'Resize']
test_pipeline = [step for step in _base_.test_pipeline if step['type'] != 'Resize']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(data_preprocessor=dict(size=(360, 480)))
# A step takes four times as long as on half the size.
train_cfg = dict(max_epochs=3, val_interval=3)
