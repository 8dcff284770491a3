# Backbones for segmentation: "we use 8 GPU with 32 images per GPU to pre-train the EN-ResNet50" (EN
# paper, Section 4.4); the learning rate that ResNet's own recipe has for 256 images.
_base_ = "resnet50_imagenet.py"
optim_wrapper = dict(optimizer=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=256)
