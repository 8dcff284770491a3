# EN paper, Table 5, ResNet110, BN (CIFAR-100).
_base_ = "_base_/resnet110_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
