# ILM paper, Table 3, LN (ImageNet).
# Layer normalization over (C, H, W) is group normalization with one group.
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=1)))
