# What the EN paper calls "DeepLab with ResNet50": dilations 2 and 4 in the last two stages, output
# stride 8. Its SyncBN figures, and GN's at one scale, are those of the authors' earlier code,
# github.com/switchablenorms/SwitchNorm_Segmentation, whose decoder c1_bilinear_deepsup is here: one
# 3x3 convolution and a classifier, with deep supervision on res4. This is no head of DeepLab's;
# deeplabv3_r50-d8.py has that. The files in ../norms say the norm.
# That code computes the loss against labels at 1/8 of the size, this one at full size, as all of
# mmseg: there it would need another head. The loss is the mean over labelled pixels: images of a
# batch differ in size, and padding has no label.
loss = dict(type="CrossEntropyLoss", avg_non_ignore=True, loss_weight=1.0)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=8,
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        contract_dilation=True,
        style="pytorch",
        norm_eval=False,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=150,
        align_corners=False,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=1024,
        in_index=2,
        channels=512,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(loss, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
