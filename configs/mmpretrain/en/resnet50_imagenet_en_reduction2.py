# EN paper, Table 8, r = 2: top-1 77.7 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=2)))
