# CIFAR-10 from {train,test}.npz archives (ilm_plugins.data.packed), in place of cifar10.py; or,
# without a new config, by overrides: train_dataloader.dataset.type=PackedImages
# train_dataloader.dataset.data_root=DIR, and so for val_dataloader and test_dataloader.
_base_ = "cifar10.py"
train_dataloader = dict(dataset=dict(type="PackedImages", data_root="data/cifar10_jpeg"))
val_dataloader = dict(dataset=dict(type="PackedImages", data_root="data/cifar10_jpeg"))
test_dataloader = val_dataloader
