# ILM paper, Table 7, (tanh, tanh) for mean and variance: error 8.63 (CIFAR-10, in percent).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN", activations=("tanh", "tanh"))))
