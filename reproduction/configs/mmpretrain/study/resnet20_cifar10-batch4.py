# Not in the papers: as resnet20_cifar10.py in batches of 4, which make steps enough to need no
# warm-up.
_base_ = "resnet20_cifar10.py"
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, end=3, T_max=3, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=3, val_interval=3)
auto_scale_lr = dict(base_batch_size=4)
