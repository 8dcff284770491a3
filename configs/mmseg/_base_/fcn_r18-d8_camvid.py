# A segmentor of half of R-18's width, which learns CamVid in minutes on one CPU core. GN and ILMGN
# have half as many groups as in R-18, and ILMGN's key groups and EN's r have half their size.
_base_ = [
    "models/fcn_r50-d8.py",
    "datasets/camvid.py",
    "schedules/sgd_poly_100k.py",
    "default_runtime.py",
]
model = dict(
    backbone=dict(depth=18, stem_channels=32, base_channels=32),
    decode_head=dict(in_channels=256, channels=128, num_classes=11),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11),
)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = dict(end=1500)
train_cfg = dict(max_iters=1500, val_interval=1500)
default_hooks = dict(checkpoint=dict(interval=300, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8)
