# EN paper, Table 2, ResNet50, SSN (ImageNet).
_base_ = ["_base_/resnet50_imagenet.py", "_base_/ssn.py"]
