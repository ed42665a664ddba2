# A small Group-Net** on the embedded digits in two stages, this is the first: tanh and real weights.
#   python tools/train.py configs/classification/groupnet_r8_k3_stage-a_digits.py
#   python tools/train.py configs/classification/groupnet_r8_k3_stage-b_digits.py
_base_ = 'groupnet_r8_k3_scratch_digits.py'

model = dict(backbone=dict(real_valued=True, binary_cfg=dict(_delete_=True)))

train_cfg = dict(max_epochs=6)
