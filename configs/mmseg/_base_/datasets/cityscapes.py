# Cityscapes' 19 classes. Crop and test scales are not in the EN paper: mmseg's usual, our choice.
# The paper reports the test set; this evaluates on val, whose labels are public.
dataset_type = "CityscapesDataset"
data_root = "data/cityscapes/"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 1024), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
multi_scale = [
    [
        dict(type="Resize", scale_factor=factor, keep_ratio=True)
        for factor in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    ],
    [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[*multi_scale, [dict(type="LoadAnnotations")], [dict(type="PackSegInputs")]],
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
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
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
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

# For ../../*cityscapes-test*.py: predictions on the test set as the benchmark's server takes them,
# one PNG of label ids for each image.
server_dataset = dict(
    data_prefix=dict(img_path="leftImg8bit/test", seg_map_path="gtFine/test"),
    pipeline=[t for t in test_pipeline if t["type"] != "LoadAnnotations"],
)
server_tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="TestTimeAug", transforms=[*multi_scale, [dict(type="PackSegInputs")]]),
]
server_metric = dict(type="CityscapesMetric", format_only=True, keep_results=True)
