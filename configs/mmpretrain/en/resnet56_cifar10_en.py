# EN paper, Table 5, ResNet56, EN: top-1 93.73 (CIFAR-10, in percent).
_base_ = "_base_/resnet56_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=8)))
