# EN paper, Table 4, ImageNet -> WebVision, BN: top-1 67.9, top-5 85.8 (in percent). A test alone,
# of what resnet50_imagenet_bn.py has trained.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/webvision_test.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
load_from = "checkpoints/resnet50_imagenet_bn.pth"
