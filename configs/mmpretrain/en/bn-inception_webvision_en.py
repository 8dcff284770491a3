# EN paper, Table 3, Inception v2, EN: top-1 71.6, top-5 88.6 (WebVision, in percent).
_base_ = "_base_/bn-inception_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=16)))
