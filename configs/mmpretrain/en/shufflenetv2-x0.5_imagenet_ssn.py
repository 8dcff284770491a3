# EN paper, Table 2, ShuffleNetV2 x0.5, SSN (ImageNet).
# Momentum and schedule of the radius follow the authors' code of SSN.
_base_ = "_base_/shufflenetv2-x0.5_imagenet.py"
model = dict(backbone=dict(norm_cfg=dict(type="SSN", momentum=0.003)))
custom_hooks = [dict(type="RadiusHook")]
