# A small Group-Net** on the embedded digits, second of two stages: binary, from the weights of the first.
_base_ = 'groupnet_r8_k3_scratch_digits.py'

load_from = 'work_dirs/groupnet_r8_k3_stage-a_digits/epoch_6.pth'

train_cfg = dict(max_epochs=6)
