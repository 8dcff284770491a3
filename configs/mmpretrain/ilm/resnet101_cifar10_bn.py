# ILM paper, Table 1, BN (CIFAR-10).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
