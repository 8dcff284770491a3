_base_ = "detector.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="ILMGN"))))
load_from = "output/ilmgn.pth"
