# AssocNorm paper, Table 5, a(WE): error 7.04 (CIFAR-10, in percent).
_base_ = "../ilm/_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm", combine="a(WE)")))
