# Cityscapes: the EN paper gives the learning rate; 80,000 iterations are mmseg's usual, our
# choice. The optimizer is the same as on ADE20K.
_base_ = "sgd_poly_100k.py"
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(end=80000)
train_cfg = dict(max_iters=80000, val_interval=8000)
