# EN paper, Table 6, GN (Cityscapes val), with DeepLabV3, of which the paper gives no figure.
_base_ = ["_base_/deeplabv3_r50-d8_cityscapes.py", "_base_/norms/gn.py"]
model = _base_.norm
