# ILM paper, Table 2, IN: top-1 error 26.08, top-5 7.6 (CIFAR-100, in percent).
_base_ = "_base_/resnet101_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="IN", affine=True)))
