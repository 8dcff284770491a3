# ILM paper, Table 1, LN (CIFAR-10).
# Layer normalization over (C, H, W) is group normalization with one group.
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=1)))
