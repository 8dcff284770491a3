# EN paper, Table 3, Inception v2 (WebVision).
# The paper cites another network under this name; see BNInception.
_base_ = [
    "../_base_/datasets/webvision.py",
    "_base_/schedule_webvision.py",
    "../_base_/runtime_by_iterations.py",
]
train_dataloader = dict(batch_size=32)
model = dict(
    type="ImageClassifier",
    backbone=dict(type="BNInception", norm_cfg=dict(type="BN")),
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
