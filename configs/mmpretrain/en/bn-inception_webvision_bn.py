# EN paper, Table 3, Inception v2, BN: top-1 70.7, top-5 88.0 (WebVision, in percent).
_base_ = "_base_/bn-inception_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
