# CIFAR-100, padded by 4 and cropped to 32, flipped; top-1 and top-5.
_base_ = "mmpretrain::_base_/datasets/cifar100_bs16.py"
val_evaluator = dict(topk=(1, 5))
test_evaluator = val_evaluator
