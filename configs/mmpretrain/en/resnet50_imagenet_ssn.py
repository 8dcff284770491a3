# EN paper, Table 2, ResNet50, SSN (ImageNet).
# The momentum and the radius that grows over the training are those of SSN's authors' code.
_base_ = "_base_/resnet50_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SSN", momentum=0.003)))
custom_hooks = [dict(type="RadiusHook")]
