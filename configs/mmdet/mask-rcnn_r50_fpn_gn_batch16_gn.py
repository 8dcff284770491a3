# ILM Norm paper, Table 5, GN, batch 16 (COCO test); this evaluates on val2017.
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch16.py"
