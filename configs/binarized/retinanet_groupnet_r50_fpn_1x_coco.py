# RetinaNet R50 on COCO, made binary by the default policy: Group-Net backbone, neck and head, K = 4.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/policies/groupnet_k4.py']

model = dict(_delete_=True, type='mmgroupnet.Binarized', backbone={}, policy=_base_.policy, model=_base_.model)
# Logs the share of +1 and the dead channels of binary layers, once per epoch.
custom_hooks = [dict(type='mmgroupnet.BinaryStatisticsHook')]
