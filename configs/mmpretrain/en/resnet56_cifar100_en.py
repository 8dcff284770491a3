# EN paper, Table 5, ResNet56, EN: top-1 72.01 (CIFAR-100, in percent).
_base_ = "_base_/resnet56_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=8)))
