# EN paper, Table 5, ResNet20, BN: top-1 91.54 (CIFAR-10, in percent).
_base_ = "_base_/resnet20_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
