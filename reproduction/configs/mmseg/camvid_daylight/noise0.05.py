# Tested by day on images with Gaussian noise of deviation .05, of values from 0 to 1.
_base_ = "fcn_r18-d8.py"
change = dict(type="TorchvisionTransform", name="gaussian_noise", sigma=0.05)
test_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]])
)
