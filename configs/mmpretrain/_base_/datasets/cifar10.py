# CIFAR-10, padded by 4 and cropped to 32, flipped. From {train,test}.npz archives
# (ilm_plugins.data.packed): train_dataloader.dataset.type=PackedImages
# train_dataloader.dataset.data_root=DIR, and so for val_dataloader and test_dataloader.
_base_ = "mmpretrain::_base_/datasets/cifar10_bs16.py"
