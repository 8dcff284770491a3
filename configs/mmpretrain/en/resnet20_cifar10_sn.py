# EN paper, Table 5, ResNet20, SN (CIFAR-10).
_base_ = "_base_/resnet20_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
