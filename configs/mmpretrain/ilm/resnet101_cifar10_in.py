# ILM paper, Table 1, IN: error 7.0 (CIFAR-10, in percent); 6.54 in the AssocNorm paper.
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="IN", affine=True)))
