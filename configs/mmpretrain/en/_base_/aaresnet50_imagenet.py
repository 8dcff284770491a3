_base_ = "resnet50_imagenet.py"
custom_imports = dict(imports=["ilm_plugins.experiments.models.aa_resnet"])
model = dict(backbone=dict(type="AAResNet"))
