# EN paper, Table 6, EN: mIoU 38.2 single-scale, 38.9 multi-scale (ADE20K val, in percent).
_base_ = ["_base_/fcn_r50-d8_ade20k.py", "_base_/norms/en.py"]
model = _base_.norm
