# DeepLabV3: atrous spatial pyramid pooling in place of the head's convolution.
_base_ = "fcn_r50-d8.py"
model = dict(
    decode_head=dict(
        _delete_=True,
        type="ASPPHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        dropout_ratio=0.1,
        num_classes=150,
        align_corners=False,
        loss_decode=_base_.loss,
    ),
)
