# ILM paper, Table 3, GN: top-1 error 24.06 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
