# EN paper, Table 6, GN: mIoU 35.7 single-scale, 36.6 multi-scale (ADE20K val, in percent).
_base_ = ["_base_/fcn_r50-d8_ade20k.py", "_base_/norms/gn.py"]
model = _base_.norm
