# EN paper, Table 5, ResNet20, SN: top-1 67.74 (CIFAR-100, in percent).
_base_ = "_base_/resnet20_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
