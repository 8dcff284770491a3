# EN paper, Table 2, ResNet50, EN: top-1 78.1, top-5 93.6 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32)))
