# ILM paper, Table 3, BN: top-1 error 23.85 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
