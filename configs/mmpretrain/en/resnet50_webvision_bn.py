# EN paper, Table 3, ResNet50, BN: top-1 72.5, top-5 89.1 (WebVision, in percent).
_base_ = "_base_/resnet50_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
