# CIFAR-10, padded by 4 and cropped to 32, flipped; from image files by cifar10_images.py.
_base_ = "mmpretrain::_base_/datasets/cifar10_bs16.py"
