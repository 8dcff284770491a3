# EN paper, Table 2, ResNet50, SN: top-1 76.9, top-5 93.2 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
