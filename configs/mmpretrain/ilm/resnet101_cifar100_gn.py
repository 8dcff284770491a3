# ILM paper, Table 2, GN: top-1 error 26.94, top-5 7.02 (CIFAR-100, in percent).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=32)))
