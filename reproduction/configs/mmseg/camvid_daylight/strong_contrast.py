# Trained by day with contrast factors from .2 to 1.8, in place of .5 to 1.5.
_base_ = "fcn_r18-d8.py"
train_pipeline = [
    dict(step, contrast_range=(0.2, 1.8)) if step["type"] == "PhotoMetricDistortion" else step
    for step in _base_.train_pipeline
]
train_folder = dict(_base_.train_folder, pipeline=train_pipeline)
val_folder = dict(_base_.val_folder, pipeline=train_pipeline)
train_dataloader = dict(dataset=dict(datasets=[train_folder, val_folder]))
