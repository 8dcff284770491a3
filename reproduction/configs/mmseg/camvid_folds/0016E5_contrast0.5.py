# As 0016E5.py, tested on images of half the contrast.
_base_ = "0016E5.py"
change = dict(type="TorchvisionTransform", name="adjust_contrast", contrast_factor=0.5)
test_pipeline = [*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]]
test_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(_base_.test_first, pipeline=test_pipeline),
            dict(_base_.test_second, pipeline=test_pipeline),
        ]
    )
)
