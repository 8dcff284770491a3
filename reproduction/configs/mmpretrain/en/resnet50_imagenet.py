# EN paper, Tables 2 and 7 to 9, ResNet50 (ImageNet).
# Section 4.1: batch 128, "SGD with stepwise learning rate decay"; 100 epochs (Figure 5),
# divided by 10 at 30, 60 and 90 ("31, 61 and 91 epoch are three epochs after the learning rate
# decay", Figure 8).
# Our choice, where the paper is silent: .1 for 256 images as in ResNet's own recipe, hence .05, its
# weight decay and momentum, and 32 images on each of 4 GPUs.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
