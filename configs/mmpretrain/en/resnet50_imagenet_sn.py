# EN paper, Table 2, ResNet50, SN (ImageNet).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
