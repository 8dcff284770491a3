# EN paper, Table 5, ResNet56 (CIFAR-10).
_base_ = "resnet20_cifar10.py"
model = dict(backbone=dict(depth=56))
