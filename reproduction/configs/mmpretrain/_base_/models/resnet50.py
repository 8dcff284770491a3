# Both papers start the scale of every norm at 1, where mmpretrain starts the last of a block at 0.
_base_ = "mmpretrain::_base_/models/resnet50.py"
model = dict(
    backbone=dict(norm_cfg=dict(type="BN"), zero_init_residual=False), head=dict(cal_acc=True)
)
