# Not in the papers: a segmentor of half of R-18's width, which learns CamVid in minutes on one CPU
# core. Other norms are arguments, such as
# compare ilm_plugins://mmseg/camvid/fcn_r18-d8.py BN "EN(reduction=16)".
# At half the width, the study's GN and ILMGN have half as many groups as in R-18, and ILMGN's key
# groups and EN's r have half their size.
_base_ = [
    "../_base_/models/fcn_r50-d8.py",
    "../_base_/datasets/camvid.py",
    "../_base_/schedules/sgd_poly_100k.py",
    "../_base_/default_runtime.py",
]
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    backbone=dict(depth=18, stem_channels=32, base_channels=32, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=256, channels=128, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=11, norm_cfg=norm_cfg),
)
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = dict(end=1500)
train_cfg = dict(max_iters=1500, val_interval=1500)
default_hooks = dict(checkpoint=dict(interval=300, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8)
