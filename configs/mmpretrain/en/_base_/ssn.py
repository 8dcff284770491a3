# SSN (Shao et al., CVPR 2019): the radius grows from 0 to 1 over the training. The momentum is that
# of its authors' code, where it is called .997.
model = dict(backbone=dict(norm_cfg=dict(type="SSN", momentum=0.003)))
custom_hooks = [dict(type="RadiusHook")]
