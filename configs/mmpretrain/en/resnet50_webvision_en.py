# EN paper, Table 3, ResNet50, EN: top-1 73.5, top-5 89.4 (WebVision, in percent).
_base_ = "_base_/resnet50_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32)))
