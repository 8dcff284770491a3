# Tested by day on images darkened by gamma .5.
_base_ = "fcn_r18-d8.py"
change = dict(type="TorchvisionTransform", name="adjust_gamma", gamma=2.0)
test_dataloader = dict(
    dataset=dict(pipeline=[*_base_.test_pipeline[:2], change, *_base_.test_pipeline[2:]])
)
