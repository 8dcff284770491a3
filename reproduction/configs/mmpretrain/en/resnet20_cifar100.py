# EN paper, Table 5, ResNet20 (CIFAR-100).
_base_ = [
    "../_base_/models/cifar-resnet.py",
    "../_base_/datasets/cifar100.py",
    "_base_/schedule_cifar.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=128)
model = dict(head=dict(num_classes=100))
