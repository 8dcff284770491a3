# EN paper, Table 4, ImageNet -> WebVision, SN: top-1 68.0, top-5 86.3 (in percent). A test alone,
# of what resnet50_imagenet_sn.py has trained.
_base_ = [
    "../_base_/models/resnet50.py",
    "../_base_/datasets/webvision_test.py",
    "../_base_/runtime.py",
]
model = dict(backbone=dict(norm_cfg=dict(type="SN")))
load_from = "checkpoints/resnet50_imagenet_sn.pth"
