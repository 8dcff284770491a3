# EN paper, Table 4, WebVision -> ImageNet, SN: top-1 61.1, top-5 81.0 (in percent). A test alone,
# of what resnet50_webvision_sn.py has trained.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/imagenet_test.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
load_from = "checkpoints/resnet50_webvision_sn.pth"
