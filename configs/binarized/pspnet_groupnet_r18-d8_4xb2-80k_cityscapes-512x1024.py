# PSPNet R18 on Cityscapes, made binary by the default policy: Group-Net backbone and decode head, K = 4.
_base_ = ['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', '../_base_/policies/groupnet_k4.py']

model = dict(_delete_=True, type='mmgroupnet.Binarized', policy=_base_.policy, model=_base_.model)
# Logs the share of +1 and the dead channels of binary layers, at every validation.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]
