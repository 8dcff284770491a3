# Two images on one GPU; learning rate by the linear scaling rule.
_base_ = "mask-rcnn_r50_fpn_gn_batch16.py"
optim_wrapper = dict(optimizer=dict(lr=0.0025))
auto_scale_lr = dict(base_batch_size=2)
