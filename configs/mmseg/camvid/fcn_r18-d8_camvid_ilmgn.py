# Not in the papers: CamVid with ILMGN.
_base_ = "../_base_/fcn_r18-d8_camvid.py"
norm_cfg = dict(type="ILMGN", num_groups=16, key_group_size=8, requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg),
)
