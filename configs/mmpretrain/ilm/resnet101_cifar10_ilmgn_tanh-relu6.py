# ILM paper, Table 7, (tanh, relu6) for mean and variance: did not converge (CIFAR-10).
_base_ = "_base_/resnet101_cifar10.py"
model = dict(backbone=dict(norm_cfg=dict(type="ILMGN", activations=("tanh", "relu6"))))
