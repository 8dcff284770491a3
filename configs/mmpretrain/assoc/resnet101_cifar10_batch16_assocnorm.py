# AssocNorm paper, Table 3, batch 16: error 6.64 (CIFAR-10, in percent).
_base_ = "../ilm/_base_/resnet101_cifar10_batch16.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
