# EN paper, Table 7, pi = 10: top-1 77.5 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32, expansion=10)))
