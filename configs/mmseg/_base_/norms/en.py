# EN, not synchronized between GPUs, on a backbone that "tools/reproduce.py run en-6 backbone/EN"
# trains; put its checkpoint at the path below, or train from scratch: model.backbone.init_cfg=None.
pretrained = "checkpoints/resnet50_imagenet_8xb32_en.pth"
norm_cfg = dict(type="EN", requires_grad=True)
norm = dict(
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
