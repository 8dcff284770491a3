# EN paper, Table 3, Inception v2, EN (WebVision).
_base_ = "_base_/bn-inception_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=16)))
