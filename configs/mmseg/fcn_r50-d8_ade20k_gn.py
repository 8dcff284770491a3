# EN paper, Table 6, GN (ADE20K val).
_base_ = ["_base_/fcn_r50-d8_ade20k.py", "_base_/norms/gn.py"]
model = _base_.norm
