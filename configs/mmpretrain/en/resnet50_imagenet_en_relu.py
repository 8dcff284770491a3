# EN paper, Table 9, c, ReLU: top-1 77.7, top-5 93.4 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32, activation="relu")))
