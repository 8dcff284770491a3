# ILM paper, Table 4, GN, batch 16: error 7.24 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch16.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
