_base_ = "segmenter.py"
norm_cfg = dict(type="EN", reduction=16)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
load_from = "output/en.pth"
