# ILM paper, Table 3, ILM+GN: top-1 error 23.57 (ImageNet, in percent).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN")))
