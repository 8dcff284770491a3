_base_ = "resnet101_cifar10.py"
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
