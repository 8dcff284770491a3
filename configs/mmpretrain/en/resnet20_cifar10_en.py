# EN paper, Table 5, ResNet20, EN (CIFAR-10).
_base_ = "_base_/resnet20_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=8)))
