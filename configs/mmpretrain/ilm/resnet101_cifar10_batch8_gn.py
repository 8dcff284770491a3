# ILM paper, Table 4, GN, batch 8: error 7.22 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch8.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
