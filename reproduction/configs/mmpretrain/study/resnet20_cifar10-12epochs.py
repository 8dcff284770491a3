# Not in the papers: ResNet-20 of EN's CIFAR recipe for 12 epochs with cosine decay, on image files
# in data/cifar10_images/{train,test}/CLASS. docs/evidence.md compares GN, IN and LN with their ILM
# forms by it.
_base_ = [
    "../_base_/models/cifar-resnet.py",
    "../_base_/datasets/cifar10_images.py",
    "../en/_base_/schedule_cifar.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=128, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=100, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
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
        end=12,
        T_max=11,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=12, val_interval=12)
