# ILM paper, Table 4, BN, batch 2: error 13.79 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch2.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
