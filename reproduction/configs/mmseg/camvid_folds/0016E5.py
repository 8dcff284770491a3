# Not in the papers: CamVid's day sequences 0006R0 and Seq05VD train, 0016E5 (305 images) tests.
_base_ = "../camvid_daylight/fcn_r18-d8.py"
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, "ilm_plugins.frameworks.openmmlab.standardize_image"]
)
train_first = dict(_base_.train_folder, indices=list(range(62, 163)))
train_second = dict(
    _base_.train_folder,
    data_prefix=dict(img_path="images/test", seg_map_path="annotations/test"),
    indices=list(range(62, 233)),
)
test_first = dict(_base_.train_folder, indices=list(range(163, 367)), pipeline=_base_.test_pipeline)
test_second = dict(_base_.val_folder, pipeline=_base_.test_pipeline)
train_dataloader = dict(dataset=dict(datasets=[train_first, train_second]))
test_dataset = dict(_delete_=True, type="ConcatDataset", datasets=[test_first, test_second])
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
