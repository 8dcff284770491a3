# EN paper, Table 2, ResNet50, EN (ImageNet).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32)))
