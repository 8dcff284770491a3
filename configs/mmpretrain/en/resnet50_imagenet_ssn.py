# EN paper, Table 2, ResNet50, SSN (ImageNet).
# Momentum and schedule of the radius follow the authors' code of SSN.
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SSN", momentum=0.003)))
custom_hooks = [dict(type="RadiusHook")]
