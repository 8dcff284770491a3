# ILM Norm paper, Table 5, ILM+GN, batch 2 (COCO test); this evaluates on val2017.
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch2.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="ILMGN"))))
