# ADE20K's 150 classes, as in SwitchNorm_Segmentation (see ../models/fcn_r50-d8.py); the EN paper
# gives no sizes. Training: the short side is drawn from five lengths, at most 1000 pixels the long
# one, a flip, and no crop. The last length is 600, that code's default, where its train.sh has 575.
# Test: short side 450; multi-scale 300, 400, 500 and 600; both sides are rounded up to multiples of
# 8, the backbone's stride. Unlike there, images of a batch differ in orientation and short side, so
# that there is more padding.
dataset_type = "ADE20KDataset"
data_root = "data/ade/ADEChallengeData2016"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="RandomChoiceResize",
        scales=[(1000, side) for side in (300, 375, 450, 525, 600)],
        keep_ratio=True,
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1000, 450), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=8),
    # After Resize: predictions are compared at the annotation's own size.
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(1000, side), keep_ratio=True)
                for side in (300, 400, 500, 600)
            ],
            [dict(type="ResizeToMultiple", size_divisor=8)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
