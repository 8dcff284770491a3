# Standardize each input image over all its values, with mmseg; mmdet and mmpretrain are alike. It
# undoes a change of brightness and contrast, for any norm. Give your own config as _base_.
_base_ = "ilm_plugins::mmseg/shapes/fcn_r18-d8_shapes_bn.py"
imports = ["ilm_plugins", "ilm_plugins.frameworks.openmmlab.standardize_image"]
custom_imports = dict(imports=imports)
step = dict(type="StandardizeImage")
train_pipeline = [*_base_.train_pipeline[:-1], step, *_base_.train_pipeline[-1:]]
test_pipeline = [*_base_.test_pipeline[:-1], step, *_base_.test_pipeline[-1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
# In place of ImageNet's mean and deviation.
data_preprocessor = dict(mean=None, std=None)
model = dict(data_preprocessor=data_preprocessor)
