# EN paper, Table 5, ResNet20, EN: top-1 68.78 (CIFAR-100, in percent).
_base_ = "_base_/resnet20_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=8)))
