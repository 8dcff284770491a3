# EN paper, Table 6, EN (Cityscapes test); this evaluates on val.
_base_ = ["_base_/fcn_r50-d8_cityscapes.py", "_base_/norms/en.py"]
model = _base_.norm
