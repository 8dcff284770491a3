# As 0006R0_standardized.py, tested on images of a quarter of the contrast.
_base_ = "0006R0_standardized.py"
change = dict(type="TorchvisionTransform", name="adjust_contrast", contrast_factor=0.25)
test_pipeline = [*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]]
test_dataloader = dict(dataset=dict(datasets=[dict(_base_.test_first, pipeline=test_pipeline)]))
