# ILM paper, Table 2, BN: top-1 error 26.28, top-5 9.37 (CIFAR-100, in percent).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
