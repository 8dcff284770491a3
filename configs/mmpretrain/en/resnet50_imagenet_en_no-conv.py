# EN paper, Table 9, b, w/o convolution: top-1 77.6, top-5 92.9 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32, ratio_net="no_conv")))
