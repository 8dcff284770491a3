# AssocNorm paper, Table 3, batch 4: error 7.05 (CIFAR-10, in percent).
_base_ = "../ilm/_base_/resnet101_cifar10_batch4.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
