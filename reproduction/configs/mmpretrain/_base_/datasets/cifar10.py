# CIFAR-10, padded by 4 and cropped to 32, flipped. `python -m reproduction run` reads it
# from a folder of image files, too, with --data.
_base_ = "mmpretrain::_base_/datasets/cifar10_bs16.py"
