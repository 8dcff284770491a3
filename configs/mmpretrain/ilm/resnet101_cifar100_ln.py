# ILM paper, Table 2, LN (CIFAR-100).
# Layer normalization over (C, H, W) is group normalization with one group.
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=1)))
