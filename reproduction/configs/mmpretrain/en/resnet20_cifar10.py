# EN paper, Table 5, ResNet20 (CIFAR-10).
# EN's r = 8 on CIFAR, in papers.json, is our choice: half of the smallest number of channels, as
# for ResNet-50 and Inception v2.
_base_ = [
    "../_base_/models/cifar-resnet.py",
    "../_base_/datasets/cifar10.py",
    "_base_/schedule_cifar.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=128)
