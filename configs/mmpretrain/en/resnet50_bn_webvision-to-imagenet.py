# EN paper, Table 4, WebVision -> ImageNet, BN: top-1 64.4, top-5 84.3 (in percent). A test alone,
# of what resnet50_webvision_bn.py has trained.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/imagenet_test.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(norm_cfg=dict(type="BN")))
load_from = "checkpoints/resnet50_webvision_bn.pth"
