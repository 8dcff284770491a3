# EN paper, Table 4, ImageNet -> WebVision, EN: top-1 68.4, top-5 86.8 (in percent). A test alone,
# of what resnet50_imagenet_en.py has trained.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/webvision_test.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(norm_cfg=dict(type="EN", reduction=32)))
load_from = "checkpoints/resnet50_imagenet_en.pth"
