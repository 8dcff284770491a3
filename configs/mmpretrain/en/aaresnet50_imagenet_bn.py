# EN paper, Table 2, AANet (ImageNet): Bello et al., ICCV 2019, in the recipe of the other rows.
_base_ = "_base_/aaresnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
