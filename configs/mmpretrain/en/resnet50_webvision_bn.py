# EN paper, Table 3, ResNet50, BN (WebVision).
_base_ = "_base_/resnet50_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
