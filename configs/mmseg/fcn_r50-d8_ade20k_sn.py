# EN paper, Table 6, SN: mIoU 37.7 single-scale, 38.4 multi-scale (ADE20K val, in percent).
_base_ = ["_base_/fcn_r50-d8_ade20k.py", "_base_/norms/sn.py"]
model = _base_.norm
