# EN paper, Table 2, ShuffleNetV2 x0.5 (ImageNet).
# Section 4.1: batch 128. Its "Same as [26], ShuffleNet v2 is trained by using Adam
# optimizer with the initial learning rate 0.1" is surely a misprint: [26] does not. So here is that
# network's own recipe: SGD, .5 for 1024 images, falling linearly to 0 in 300,000 iterations, and
# weight decay 4e-5 but for norms; scaled to 128 images, .0625 and 240 epochs; 32 images on each of
# 4 GPUs. In the paper's words, as an override:
# optim_wrapper.optimizer._delete_=True optim_wrapper.optimizer.type=Adam
# optim_wrapper.optimizer.lr=0.1 optim_wrapper.optimizer.weight_decay=4e-5
_base_ = [
    "mmpretrain::_base_/models/shufflenet_v2_1x.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/runtime.py",
]
train_dataloader = dict(batch_size=32)
model = dict(backbone=dict(widen_factor=0.5, norm_cfg=dict(type="BN")), head=dict(cal_acc=True))
optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.0625, momentum=0.9, weight_decay=4e-5),
    paramwise_cfg=dict(norm_decay_mult=0),
)
param_scheduler = dict(type="PolyLR", power=1, eta_min=0, by_epoch=True, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=240, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
