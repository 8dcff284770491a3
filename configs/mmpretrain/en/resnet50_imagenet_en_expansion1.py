# EN paper, Table 7, pi = 1: top-1 77.1 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32, expansion=1)))
