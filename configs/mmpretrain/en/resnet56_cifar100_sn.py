# EN paper, Table 5, ResNet56, SN: top-1 70.7 (CIFAR-100, in percent).
_base_ = "_base_/resnet56_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
