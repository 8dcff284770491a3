# EN paper, Table 5, ResNet110, SN (CIFAR-10).
_base_ = "_base_/resnet110_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
