# ILM paper, Figure 4, key features extracted as in IN, from each channel: a curve, no figure
# (CIFAR-10).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN", key_group_size=1)))
