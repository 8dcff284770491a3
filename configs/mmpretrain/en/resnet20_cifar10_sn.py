# EN paper, Table 5, ResNet20, SN: top-1 91.81 (CIFAR-10, in percent).
_base_ = "_base_/resnet20_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
