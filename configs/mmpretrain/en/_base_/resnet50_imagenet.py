_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "schedule_imagenet.py",
    "../../_base_/runtime.py",
]
train_dataloader = dict(batch_size=32)
