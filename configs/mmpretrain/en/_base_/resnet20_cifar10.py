# EN's r = 8, in the configs that inherit from here, is our choice: half of the smallest number of
# channels, as for ResNet-50 and Inception v2.
_base_ = [
    "../../_base_/models/cifar-resnet.py",
    "../../_base_/datasets/cifar10.py",
    "schedule_cifar.py",
    "../../_base_/runtime.py",
]
train_dataloader = dict(batch_size=128)
model = dict(backbone=dict(depth=20))
