# EN paper, Table 5, ResNet56 (CIFAR-100).
_base_ = "resnet20_cifar100.py"
model = dict(backbone=dict(depth=56))
