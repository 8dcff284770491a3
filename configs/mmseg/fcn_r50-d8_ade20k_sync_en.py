# EN paper, Table 6, EN (ADE20K val), with the batch statistics of all processes, of which the paper
# gives no figure.
_base_ = "fcn_r50-d8_ade20k_en.py"
sync = dict(norm_cfg=dict(sync=True))
model = dict(backbone=sync, decode_head=sync, auxiliary_head=sync)
