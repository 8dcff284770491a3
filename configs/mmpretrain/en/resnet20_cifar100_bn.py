# EN paper, Table 5, ResNet20, BN (CIFAR-100).
_base_ = "_base_/resnet20_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
