# EN paper, Table 4, WebVision -> ImageNet, EN: top-1 64.7, top-5 84.6 (in percent). A test alone,
# of what resnet50_webvision_en.py has trained.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/imagenet_test.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32)))
load_from = "checkpoints/resnet50_webvision_en.pth"
