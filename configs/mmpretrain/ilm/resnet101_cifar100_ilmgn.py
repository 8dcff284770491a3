# ILM paper, Table 2, ILM+GN (CIFAR-100).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
