# ILM paper, Table 1, ILM+LN: error 7.35 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMLN")))
