# EN paper, Table 3, Inception v2, SN (WebVision).
_base_ = "_base_/bn-inception_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
