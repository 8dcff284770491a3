# As 0016E5.py, but each input image is standardized over all its values, in training and tests.
_base_ = "0016E5.py"
step = dict(type="StandardizeImage")
train_pipeline = [*_base_.train_pipeline[:-1], step, *_base_.train_pipeline[-1:]]
test_pipeline = [*_base_.test_pipeline[:-1], step, *_base_.test_pipeline[-1:]]
model = dict(data_preprocessor=dict(mean=None, std=None))
train_first = dict(_base_.train_first, pipeline=train_pipeline)
train_second = dict(_base_.train_second, pipeline=train_pipeline)
test_first = dict(_base_.test_first, pipeline=test_pipeline)
test_second = dict(_base_.test_second, pipeline=test_pipeline)
train_dataloader = dict(dataset=dict(datasets=[train_first, train_second]))
test_dataset = dict(datasets=[test_first, test_second])
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
