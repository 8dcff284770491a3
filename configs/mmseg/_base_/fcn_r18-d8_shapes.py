# A segmentor small enough to learn the generated `shapes` in minutes on two CPU cores.
_base_ = [
    "models/fcn_r50-d8.py",
    "datasets/shapes.py",
    "schedules/sgd_poly_100k.py",
    "default_runtime.py",
]
custom_imports = dict(imports=["ilm_plugins.shapes.mmseg"])
model = dict(
    backbone=dict(depth=18, stem_channels=32, base_channels=32),
    decode_head=dict(in_channels=256, channels=128, num_classes=5),
    auxiliary_head=dict(in_channels=128, channels=64, num_classes=5),
)
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(end=400)
train_cfg = dict(max_iters=400, val_interval=400)
default_hooks = dict(checkpoint=dict(interval=400))
auto_scale_lr = dict(base_batch_size=4)
