# EN paper, Table 2, ShuffleNetV2 x0.5, BN: top-1 60.3, top-5 81.9 (ImageNet, in percent).
_base_ = "_base_/shufflenetv2-x0.5_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
