# ILM paper, Table 2, ILM+IN: top-1 error 23.97, top-5 6.71 (CIFAR-100, in percent).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMIN")))
