# EN paper, Table 2, SENet (ImageNet): Hu et al., CVPR 2018, in the recipe of the other rows.
_base_ = "resnet50_imagenet.py"
model = dict(backbone=dict(type="SEResNet"))
