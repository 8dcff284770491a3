# ImageNet, random resized crop of 224 and flip; tested on the center crop of a short side of 256.
# ILM Norm's paper gives neither. The EN paper's augmentation is He et al.'s, which is another:
# crops of 224 out of images whose short side is drawn from 256 to 480 (scale jitter), flips, and
# changes of colour.
_base_ = "mmpretrain::_base_/datasets/imagenet_bs32.py"
