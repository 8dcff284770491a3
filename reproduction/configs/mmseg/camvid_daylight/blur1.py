# Tested by day on images blurred by a Gaussian of deviation 1 pixel.
_base_ = "fcn_r18-d8.py"
change = dict(type="TorchvisionTransform", name="gaussian_blur", kernel_size=9, sigma=1.0)
test_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]])
)
