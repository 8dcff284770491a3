# As cifar10.py, with AugMix in training, before the image is standardized.
_base_ = "cifar10.py"
train_pipeline = [*_base_.train_pipeline[:-2], dict(type="AugMix"), *_base_.train_pipeline[-2:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
