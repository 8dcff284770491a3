# WebVision for a test alone.
_base_ = "webvision.py"
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict()
