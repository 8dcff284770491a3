# EN paper, Table 6, GN: mIoU 68.4 single-scale, 73.1 multi-scale (Cityscapes test, in percent);
# this evaluates on val.
_base_ = ["_base_/fcn_r50-d8_cityscapes.py", "_base_/norms/gn.py"]
model = _base_.norm
