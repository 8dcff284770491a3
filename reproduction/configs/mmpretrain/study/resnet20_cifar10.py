# Not in the papers: ResNet-20 of EN's CIFAR recipe with a few epochs, for one CPU core. Other norms
# are arguments, such as
# compare reproduction/configs/mmpretrain/study/resnet20_cifar10.py BN "GN(num_groups=8)".
# ResNet-20 has 16 channels: the study's norms have 8 groups, and ILMGN key groups of 4 channels.
_base_ = "../en/resnet20_cifar10.py"
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=100, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.2))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=1,
        end=4,
        T_max=3,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=4, val_interval=4)
