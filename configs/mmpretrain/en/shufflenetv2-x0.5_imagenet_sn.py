# EN paper, Table 2, ShuffleNetV2 x0.5, SN (ImageNet).
_base_ = "_base_/shufflenetv2-x0.5_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
