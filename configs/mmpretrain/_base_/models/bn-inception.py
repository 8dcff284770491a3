# "Inception v2" of the EN paper, which cites another network under this name; see BNInception.
model = dict(
    type="ImageClassifier",
    backbone=dict(type="BNInception"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=1024,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        cal_acc=True,
        topk=(1, 5),
    ),
)
