# Not in the paper, which gives the figures of ResNet-101.
_base_ = "../ilm/_base_/resnet50_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
