# ILM Norm paper, Table 6, ILM+IN / ILM+IN (Facades).
_base_ = "./_base_/pix2pix.py"
ilmin = dict(_delete_=True, type="ILMIN", key_group_size=1)
model = dict(generator=dict(norm_cfg=ilmin), discriminator=dict(norm_cfg=ilmin))
