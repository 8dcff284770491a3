# Synchronized BN, on torchvision's ResNet-50. From scratch: model.backbone.init_cfg=None.
norm_cfg = dict(type="SyncBN", requires_grad=True)
norm = dict(
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
