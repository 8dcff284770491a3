# EN paper, Section 4.2: batch 256, SGD, learning rate .1, divided by 10 at 300, 500, 600, 650 and
# 700 thousand iterations.
# Our choice, where the paper is silent: 750 thousand iterations in all, so that each rate has its
# time; momentum and weight decay as on ImageNet; 32 images on each of 8 GPUs.
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(
    type="MultiStepLR",
    by_epoch=False,
    milestones=[300000, 500000, 600000, 650000, 700000],
    gamma=0.1,
)
train_cfg = dict(by_epoch=False, max_iters=750000, val_interval=10000)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
