# EN paper, Table 5, ResNet110, EN: top-1 94.22 (CIFAR-10, in percent).
_base_ = "_base_/resnet110_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=8)))
