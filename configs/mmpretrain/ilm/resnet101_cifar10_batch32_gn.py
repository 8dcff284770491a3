# ILM paper, Table 4, GN, batch 32: error 7.14 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch32.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
