# GN with 32 groups, on a backbone trained on ImageNet: copy the last checkpoint of
# "python -m reproduction run en-6 backbone/GN" to the path below, or train from
# scratch: model.backbone.init_cfg=None.
pretrained = "checkpoints/resnet50_imagenet_8xb32_gn.pth"
norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
norm = dict(
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
