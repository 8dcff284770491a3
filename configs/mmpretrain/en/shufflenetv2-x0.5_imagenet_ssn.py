# EN paper, Table 2, ShuffleNetV2 x0.5, SSN (ImageNet).
_base_ = ["_base_/shufflenetv2-x0.5_imagenet.py", "_base_/ssn.py"]
