_base_ = [
    "../../_base_/models/cifar-resnet.py",
    "../../_base_/datasets/cifar100.py",
    "schedule_cifar.py",
    "../../_base_/runtime.py",
]
train_dataloader = dict(batch_size=128)
model = dict(backbone=dict(depth=56), head=dict(num_classes=100))
