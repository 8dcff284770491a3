# Not in the papers: CIFAR-10, ResNet-20 with BN, batch 128.
_base_ = "_base_/resnet20_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
