# EN paper, Table 5, ResNet110 (CIFAR-100).
_base_ = "resnet20_cifar100.py"
model = dict(backbone=dict(depth=110))
