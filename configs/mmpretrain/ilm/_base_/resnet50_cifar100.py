_base_ = [
    "../../_base_/models/resnet50_cifar.py",
    "../../_base_/datasets/cifar100.py",
    "schedule_cifar.py",
    "../../_base_/runtime.py",
]
train_dataloader = dict(batch_size=64)
model = dict(head=dict(num_classes=100))
