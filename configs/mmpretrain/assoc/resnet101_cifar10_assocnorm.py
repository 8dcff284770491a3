# AssocNorm paper, Table 1 (CIFAR-10); in Table 5, a(WE)+B.
# The baselines BN, GN, IN and LN are ../ilm/resnet101_cifar10_*.py.
_base_ = "../ilm/_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="AssocNorm")))
