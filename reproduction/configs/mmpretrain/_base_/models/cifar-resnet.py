# ResNet of 16, 32 and 64 channels; a config gives its depth, 20, 56 or 110.
model = dict(
    type="ImageClassifier",
    backbone=dict(type="CifarResNet", depth=20, norm_cfg=dict(type="BN")),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=64,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        cal_acc=True,
    ),
)
