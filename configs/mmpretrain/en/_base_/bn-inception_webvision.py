_base_ = [
    "../../_base_/models/bn-inception.py",
    "../../_base_/datasets/webvision.py",
    "schedule_webvision.py",
    "../../_base_/runtime_by_iterations.py",
]
train_dataloader = dict(batch_size=32)
