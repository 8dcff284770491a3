# CIFAR-10 as image files, data_root/{train,test}/CLASS/NAME, instead of the archive of cifar10.py.
_base_ = "cifar10.py"
_images = dict(_delete_=True, type="CustomDataset", data_root="data/cifar10_images")
_load = dict(type="LoadImageFromFile")
# Image files are loaded as BGR, the archive as RGB.
data_preprocessor = dict(to_rgb=True)
train_dataloader = dict(
    dataset=dict(**_images, data_prefix="train", pipeline=[_load, *_base_.train_pipeline])
)
val_dataloader = dict(
    dataset=dict(**_images, data_prefix="test", pipeline=[_load, *_base_.test_pipeline])
)
test_dataloader = val_dataloader
