# ResNet-101 with a 3x3 stem of stride 1 and no max-pooling (ILM paper, Section 4.1.1), which names
# ResNet-50, too: model.backbone.depth=50; its Table 1 is of ResNet-101; its Table 2
# does not say, and has numbers of AssocNorm's Table 2, which is.
# Both papers start the scale of every norm at 1, where mmpretrain starts the last of a block at 0.
_base_ = "mmpretrain::_base_/models/resnet101_cifar.py"
model = dict(
    backbone=dict(norm_cfg=dict(type="BN"), zero_init_residual=False), head=dict(cal_acc=True)
)
