# ILM Norm paper, Table 5, ILM+GN, batch 16 (COCO test); this evaluates on val2017.
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch16.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="ILMGN"))))
