# EN paper, Section 4.3: batch 128 on one GPU, 165 epochs, learning rate .1, decayed at 80 and 120,
# and raised "from 0 to 0.1 in the first epoch", of 391 iterations.
# Our choice, where the paper is silent: decayed by 10, and ResNet's own weight decay and momentum.
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1 / 391,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(type="MultiStepLR", by_epoch=True, milestones=[80, 120], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=165, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
