# EN paper, Table 6, SyncBN: mIoU 36.4 single-scale, 37.7 multi-scale (ADE20K val, in percent).
_base_ = ["_base_/fcn_r50-d8_ade20k.py", "_base_/norms/syncbn.py"]
model = _base_.norm
