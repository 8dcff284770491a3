# EN paper, Table 2, ResNet50, GN: top-1 76.0, top-5 92.8 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
