# ImageNet, random resized crop of 224 and flip; tested on the center crop of a short side of 256.
_base_ = "mmpretrain::_base_/datasets/imagenet_bs32.py"
