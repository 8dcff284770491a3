_base_ = [
    "models/fcn_r50-d8.py",
    "datasets/cityscapes.py",
    "schedules/sgd_poly_80k.py",
    "default_runtime.py",
]
model = dict(decode_head=dict(num_classes=19), auxiliary_head=dict(num_classes=19))
