# ILM paper, Table 4, BN, batch 16: error 7.39 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch16.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
