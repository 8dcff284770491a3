# The paper names ResNet-50, too (Section 4.1.1), but its Table 1 gives the figures of ResNet-101.
# Layer normalization over (C, H, W) is group normalization with one group.
_base_ = "_base_/resnet50_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="GN", num_groups=1)))
