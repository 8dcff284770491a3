# EN paper, Table 5, ResNet110, SN: top-1 72.53 (CIFAR-100, in percent).
_base_ = "_base_/resnet110_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
