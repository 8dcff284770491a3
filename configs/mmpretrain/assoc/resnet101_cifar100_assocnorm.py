# AssocNorm paper, Table 2: top-1 error 23.31, top-5 5.71 (CIFAR-100, in percent).
_base_ = "../ilm/_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
