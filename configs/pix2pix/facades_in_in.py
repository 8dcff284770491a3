# ILM Norm paper, Table 6: RMSE 108.17, LPIPS 0.441, SSIM 0.372.
_base_ = "./_base_/pix2pix.py"
