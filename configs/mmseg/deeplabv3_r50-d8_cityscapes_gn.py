# Not in the EN paper, which gives no figure for DeepLabV3.
_base_ = ["_base_/deeplabv3_r50-d8_cityscapes.py", "_base_/norms/gn.py"]
model = _base_.norm
