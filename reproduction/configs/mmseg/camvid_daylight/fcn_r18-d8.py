# Not in the papers: CamVid by the time of day, with BN. The day's sequences 0006R0 and 0016E5 of
# all three folders train; the day's sequence Seq05VD tests. The other files of this folder test on
# what training has not seen. `indices` count a folder's names in their order.
_base_ = "ilm_plugins::mmseg/camvid/fcn_r18-d8.py"
custom_imports = dict(
    imports=["ilm_plugins", "reproduction.data.torchvision_transform"],
    allow_failed_imports=False,
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(240, 180), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 160)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_folder = dict(
    type="BaseSegDataset",
    metainfo=dict(classes={{_base_.classes}}),
    data_root={{_base_.data_root}},
    data_prefix=dict(img_path="images/train", seg_map_path="annotations/train"),
    indices=list(range(62, 367)),
    pipeline=train_pipeline,
)
val_folder = dict(
    train_folder,
    data_prefix=dict(img_path="images/val", seg_map_path="annotations/val"),
    indices=None,
)
train_dataloader = dict(
    dataset=dict(_delete_=True, type="ConcatDataset", datasets=[train_folder, val_folder])
)
test_folder = dict(
    data_prefix=dict(img_path="images/test", seg_map_path="annotations/test"),
    indices=list(range(62, 233)),
)
val_dataloader = dict(dataset=test_folder)
test_dataloader = dict(dataset=test_folder)
