# EN paper, Table 9, d, single gamma, beta: top-1 77.6, top-5 93.3 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32, shared_affine=True)))
