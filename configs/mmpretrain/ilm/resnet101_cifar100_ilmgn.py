# ILM paper, Table 2, ILM+GN: top-1 error 23.31, top-5 6.47 (CIFAR-100, in percent).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
