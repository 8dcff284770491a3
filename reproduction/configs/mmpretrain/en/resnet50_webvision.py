# EN paper, Table 3, ResNet50 (WebVision).
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/webvision.py",
    "_base_/schedule_webvision.py",
    "../_base_/runtime_by_iterations.py",
]
train_dataloader = dict(batch_size=32)
