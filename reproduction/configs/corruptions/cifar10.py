# ResNet-20 on CIFAR-10, 12 epochs; each input image is standardized over all its values.
_base_ = "../mmpretrain/study/resnet20_cifar10-12epochs.py"
custom_imports = dict(
    imports=[
        *_base_.custom_imports.imports,
        "ilm_plugins.frameworks.openmmlab.standardize_image",
        "reproduction.corruptions.openmmlab",
    ],
    allow_failed_imports=False,
)
custom_hooks = [dict(type="ChannelsLastHook")]
step = dict(type="StandardizeImage")
_train = _base_.train_dataloader.dataset.pipeline
_test = _base_.test_dataloader.dataset.pipeline
train_pipeline = [*_train[:-1], step, _train[-1]]
test_pipeline = [*_test[:-1], step, _test[-1]]
data_preprocessor = dict(mean=None, std=None)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
