# Not in the papers: Facades at 128 pixels, ILM+IN / ILM+IN.
_base_ = "_base_/facades128.py"
ilmin = dict(_delete_=True, type="ILMIN", key_group_size=1)
model = dict(generator=dict(norm_cfg=ilmin), discriminator=dict(norm_cfg=ilmin))
