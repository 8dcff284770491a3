# ILM paper, Table 4, ILM+GN, batch 4: error 7.05 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10_batch4.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
