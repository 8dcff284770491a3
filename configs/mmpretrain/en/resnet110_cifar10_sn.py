# EN paper, Table 5, ResNet110, SN: top-1 94.01 (CIFAR-10, in percent).
_base_ = "_base_/resnet110_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
