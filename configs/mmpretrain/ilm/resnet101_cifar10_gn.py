# ILM paper, Table 1, GN: error 7.02 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
