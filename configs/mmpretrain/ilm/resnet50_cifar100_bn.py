# The paper names ResNet-50, too (Section 4.1.1), but its Table 2 gives the figures of ResNet-101.
_base_ = "_base_/resnet50_cifar100.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
