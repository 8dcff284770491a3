_base_ = "resnet20_cifar10.py"
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=4)
