# ILM Norm and AssocNorm papers, CIFAR-10: Tables 1, 4 and 7 of the first, 1, 3 and 5 of the second.
_base_ = [
    "../_base_/models/resnet101_cifar.py",
    "../_base_/datasets/cifar10.py",
    "_base_/schedule_cifar.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=64)
