# ILM paper, Table 1, GN (CIFAR-10).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
