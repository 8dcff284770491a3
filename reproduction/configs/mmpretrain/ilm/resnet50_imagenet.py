# ILM Norm paper, Table 3 (ImageNet).
# Section 4.1.1: batch 64 on one GPU, 100 epochs, SGD, learning rate .025, divided by 10
# at 30, 60 and 90. The released imageNet.py has another weight decay by default:
# optim_wrapper.optimizer.weight_decay=1e-4
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.025, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)
