# EN paper, Table 6, GN (Cityscapes test); this evaluates on val.
_base_ = ["_base_/fcn_r50-d8_cityscapes.py", "_base_/norms/gn.py"]
model = _base_.norm
