# EN, not synchronized between GPUs, on a backbone trained on ImageNet: copy the last checkpoint of
# "python -m reproduction run en-6 backbone/EN" to the path below, or train from
# scratch: model.backbone.init_cfg=None. The momentum is SN's; the paper gives none.
pretrained = "checkpoints/resnet50_imagenet_8xb32_en.pth"
norm_cfg = dict(type="EN", momentum=0.003, requires_grad=True)
norm = dict(
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
