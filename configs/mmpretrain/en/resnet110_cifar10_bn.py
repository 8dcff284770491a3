# EN paper, Table 5, ResNet110, BN (CIFAR-10).
_base_ = "_base_/resnet110_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
