# Synchronized BN, on a backbone trained on ImageNet: copy the last checkpoint of
# "python -m reproduction run en-6 backbone/SyncBN" to the path below, or train from
# scratch: model.backbone.init_cfg=None. The paper says only of SN's and EN's backbones how they
# are pretrained, so that this one is trained as they are.
# torchvision's weights, another recipe's: model.backbone.init_cfg.checkpoint=torchvision://resnet50
# model.backbone.init_cfg.prefix=None.
pretrained = "checkpoints/resnet50_imagenet_8xb32_bn.pth"
norm_cfg = dict(type="SyncBN", requires_grad=True)
norm = dict(
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained, prefix="backbone."),
    ),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
