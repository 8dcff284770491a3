_base_ = [
    "../../_base_/models/shufflenetv2-x0.5.py",
    "../../_base_/datasets/imagenet.py",
    "schedule_shufflenetv2.py",
    "../../_base_/runtime.py",
]
train_dataloader = dict(batch_size=32)
