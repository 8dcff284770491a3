# EN paper, Table 6, SN (Cityscapes test); this evaluates on val.
_base_ = ["_base_/fcn_r50-d8_cityscapes.py", "_base_/norms/sn.py"]
model = _base_.norm
