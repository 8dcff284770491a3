# EN paper, Table 2, ResNet50, BN: top-1 76.4, top-5 93.0 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
