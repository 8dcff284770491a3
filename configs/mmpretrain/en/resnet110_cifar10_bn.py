# EN paper, Table 5, ResNet110, BN: top-1 93.88 (CIFAR-10, in percent).
_base_ = "_base_/resnet110_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
