_base_ = [
    "models/deeplabv3_r50-d8.py",
    "datasets/ade20k.py",
    "schedules/sgd_poly_100k.py",
    "default_runtime.py",
]
