# EN paper, Table 6, EN (ADE20K val), with DeepLabV3, of which the paper gives no figure.
_base_ = ["_base_/deeplabv3_r50-d8_ade20k.py", "_base_/norms/en.py"]
model = _base_.norm
