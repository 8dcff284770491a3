# ImageNet for a test alone.
_base_ = "imagenet.py"
train_dataloader = None
val_dataloader = None
val_evaluator = None
test_cfg = dict()
