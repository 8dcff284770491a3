# EN paper, Table 5, ResNet56, SN: top-1 93.41 (CIFAR-10, in percent).
_base_ = "_base_/resnet56_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
