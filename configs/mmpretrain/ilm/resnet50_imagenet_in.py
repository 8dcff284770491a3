# ILM paper, Table 3, IN: top-1 error 28.4 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="IN", affine=True)))
