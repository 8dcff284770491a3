# Not in the EN paper, which gives no figure for DeepLabV3.
_base_ = ["_base_/deeplabv3_r50-d8_ade20k.py", "_base_/norms/en.py"]
model = _base_.norm
