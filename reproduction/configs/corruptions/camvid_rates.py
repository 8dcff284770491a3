# To choose learning rates of the folds with standardized inputs: 0006R0 and 0016E5 train, and
# Seq05VD, which tests no fold, tests.
_base_ = "../mmseg/camvid_daylight/fcn_r18-d8.py"
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, "ilm_plugins.frameworks.openmmlab.standardize_image"]
)
step = dict(type="StandardizeImage")
train_pipeline = [*_base_.train_pipeline[:-1], step, *_base_.train_pipeline[-1:]]
test_pipeline = [*_base_.test_pipeline[:-1], step, *_base_.test_pipeline[-1:]]
model = dict(data_preprocessor=dict(mean=None, std=None))
train_folder = dict(_base_.train_folder, pipeline=train_pipeline)
val_folder = dict(_base_.val_folder, pipeline=train_pipeline)
train_dataloader = dict(dataset=dict(datasets=[train_folder, val_folder]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
