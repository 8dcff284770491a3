# Not in the papers: CIFAR-10, ResNet-20 with EN, batch 4.
_base_ = "_base_/resnet20_cifar10-batch4.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=8)))
