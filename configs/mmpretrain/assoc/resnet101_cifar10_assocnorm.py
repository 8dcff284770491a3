# AssocNorm paper, Table 1: error 6.19 (CIFAR-10, in percent); in Table 5, as a(WE)+B, 6.11. The
# baselines BN, GN, IN and LN are ../ilm/resnet101_cifar10_*.py.
_base_ = "../ilm/_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
