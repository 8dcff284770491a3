# ILM Norm and AssocNorm papers, CIFAR-100: Table 2 of both.
_base_ = [
    "../_base_/models/resnet101_cifar.py",
    "../_base_/datasets/cifar100.py",
    "_base_/schedule_cifar.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=64)
model = dict(head=dict(num_classes=100))
