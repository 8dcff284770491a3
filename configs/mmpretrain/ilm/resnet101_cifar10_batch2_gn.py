# ILM paper, Table 4, GN, batch 2: error 7.29 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch2.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
