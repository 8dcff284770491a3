# Tested by day on images of half the contrast.
_base_ = "fcn_r18-d8.py"
change = dict(type="TorchvisionTransform", name="adjust_contrast", contrast_factor=0.5)
test_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]])
)
