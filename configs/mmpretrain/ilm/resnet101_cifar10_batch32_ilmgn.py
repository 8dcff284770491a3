# ILM paper, Table 4, ILM+GN, batch 32: error 6.36 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch32.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
