# ILM Norm paper, Table 6: RMSE 105.46, LPIPS 0.428, SSIM 0.372.
_base_ = "./_base_/pix2pix.py"
ilmin = dict(_delete_=True, type="ILMIN", key_group_size=1)
model = dict(generator=dict(norm_cfg=ilmin))
