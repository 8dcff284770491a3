# EN paper, Table 2, ShuffleNetV2 x0.5, SN: top-1 61.2, top-5 82.9 (ImageNet, in percent).
_base_ = "_base_/shufflenetv2-x0.5_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
