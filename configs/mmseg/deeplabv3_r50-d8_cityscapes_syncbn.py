# EN paper, Table 6, SyncBN (Cityscapes val), with DeepLabV3, of which the paper gives no figure.
_base_ = ["_base_/deeplabv3_r50-d8_cityscapes.py", "_base_/norms/syncbn.py"]
model = _base_.norm
