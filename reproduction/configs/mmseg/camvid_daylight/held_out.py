# To choose learning rates: the last 101 images of 0016E5 test what the day's others have trained.
_base_ = "fcn_r18-d8.py"
train_folder = dict(_base_.train_folder, indices=list(range(62, 351)))
val_folder = dict(_base_.val_folder, indices=list(range(16)))
train_dataloader = dict(dataset=dict(datasets=[train_folder, val_folder]))
test_dataset = dict(
    _delete_=True,
    type="ConcatDataset",
    datasets=[
        dict(_base_.train_folder, indices=list(range(351, 367)), pipeline=_base_.test_pipeline),
        dict(_base_.val_folder, indices=list(range(16, 101)), pipeline=_base_.test_pipeline),
    ],
)
val_dataloader = dict(dataset=test_dataset)
test_dataloader = dict(dataset=test_dataset)
