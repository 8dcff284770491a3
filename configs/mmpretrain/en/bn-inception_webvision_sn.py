# EN paper, Table 3, Inception v2, SN: top-1 71.3, top-5 88.5 (WebVision, in percent).
_base_ = "_base_/bn-inception_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
