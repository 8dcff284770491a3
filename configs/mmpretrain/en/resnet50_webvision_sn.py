# EN paper, Table 3, ResNet50, SN: top-1 72.8, top-5 89.2 (WebVision, in percent).
_base_ = "_base_/resnet50_webvision.py"
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
