# EN paper, Table 6, SyncBN (Cityscapes test); this evaluates on val.
_base_ = ["_base_/fcn_r50-d8_cityscapes.py", "_base_/norms/syncbn.py"]
model = _base_.norm
