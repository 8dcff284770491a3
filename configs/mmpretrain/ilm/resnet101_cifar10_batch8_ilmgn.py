# ILM paper, Table 4, ILM+GN, batch 8: error 6.7 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch8.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
