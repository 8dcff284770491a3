# ILM paper, Table 1, ILM+GN: error 5.88 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
