# AssocNorm paper, Figure 5, key features extracted as in IN, from each channel: a curve, no figure
# (CIFAR-10).
_base_ = "../ilm/_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm", num_key_groups=None)))
