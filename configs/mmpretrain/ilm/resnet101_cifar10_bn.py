# ILM paper, Table 1, BN: error 6.43 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
