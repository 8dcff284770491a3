# EN paper, Table 2, AANet (ImageNet): Bello et al., ICCV 2019, in the recipe of the other rows.
_base_ = "resnet50_imagenet.py"
custom_imports = dict(imports=["reproduction.models.aa_resnet"])
model = dict(backbone=dict(type="AAResNet"))
