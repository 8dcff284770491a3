# AssocNorm paper, Table 2 (CIFAR-100).
_base_ = "../ilm/_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
