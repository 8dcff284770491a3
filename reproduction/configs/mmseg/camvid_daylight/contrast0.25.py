# Tested by day on images of a quarter of the contrast.
_base_ = "fcn_r18-d8.py"
change = dict(type="TorchvisionTransform", name="adjust_contrast", contrast_factor=0.25)
test_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]])
)
