_base_ = "mmpretrain::_base_/models/shufflenet_v2_1x.py"
model = dict(backbone=dict(widen_factor=0.5), head=dict(cal_acc=True))
