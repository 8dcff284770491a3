# ILM paper, Table 2, ILM+LN: top-1 error 25.43, top-5 6.88 (CIFAR-100, in percent).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMLN")))
