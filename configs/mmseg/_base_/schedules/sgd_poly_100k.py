# SGD with "poly" decay, 2 images on each of 8 GPUs. The EN paper gives 2 images on each GPU, "poly"
# and the learning rates; 8 GPUs are assumed. From SwitchNorm_Segmentation (see
# ../models/fcn_r50-d8.py) are SGD, 100,000 iterations, momentum, the power .9, and weight decay
# only for convolutions and linear maps.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=0.0001),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
)
param_scheduler = dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=100000, by_epoch=False)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=100000, val_interval=10000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
auto_scale_lr = dict(enable=False, base_batch_size=16)
