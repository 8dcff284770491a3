# As ../camvid_daylight/dusk.py, but each input image is standardized over all its values.
_base_ = "../camvid_daylight/dusk.py"
custom_imports = dict(
    imports=[*_base_.custom_imports.imports, "ilm_plugins.frameworks.openmmlab.standardize_image"]
)
step = dict(type="StandardizeImage")
test_pipeline = [*_base_.test_pipeline[:-1], step, *_base_.test_pipeline[-1:]]
model = dict(data_preprocessor=dict(mean=None, std=None))
train_part = dict(_base_.dusk[0], pipeline=test_pipeline)
test_part = dict(_base_.dusk[1], pipeline=test_pipeline)
test_dataloader = dict(dataset=dict(datasets=[train_part, test_part]))
