# ILM paper, Table 2, LN: top-1 error 41.61, top-5 15.26 (CIFAR-100, in percent).
# Layer normalization over (C, H, W) is group normalization with one group.
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=1)))
