# AssocNorm paper, Table 3, batch 32: error 6.49 (CIFAR-10, in percent).
_base_ = "../ilm/_base_/resnet101_cifar10_batch32.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
