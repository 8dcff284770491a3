# ILM paper, Table 3, IN (ImageNet).
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="IN", affine=True)))
