# Backbone for EN paper, Table 6, SyncBN (configs/mmseg); no ImageNet figure is given for it.
_base_ = "_base_/resnet50_imagenet_8xb32.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
