# ILM paper, Section 4.1.1 (and AssocNorm paper, Section 4): batch 64 on one GPU, 350 epochs, SGD,
# learning rate .1, divided by 10 at 150 and 250.
# The batch-size tables change nothing else (Section 4.2). The released train.py multiplies .1 by
# batch / 256, hence .025 at batch 64, as in the paper's ImageNet recipe. To do the same, add
# auto_scale_lr.base_batch_size=256 auto_scale_lr.enable=True.
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4))
param_scheduler = dict(type="MultiStepLR", by_epoch=True, milestones=[150, 250], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=350, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=64)
