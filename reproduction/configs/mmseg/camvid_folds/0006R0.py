# Not in the papers: CamVid's day sequences 0016E5 and Seq05VD train, 0006R0 (101 images) tests.
_base_ = "0016E5.py"
train_first = dict(_base_.test_first, pipeline=_base_.train_pipeline)
train_third = dict(_base_.test_second, pipeline=_base_.train_pipeline)
train_dataloader = dict(dataset=dict(datasets=[train_first, _base_.train_second, train_third]))
test_first = dict(_base_.train_first, pipeline=_base_.test_pipeline)
test_dataset = dict(datasets=[test_first])
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
