# ILM Norm paper, Table 5, GN, batch 16 (COCO).
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch16.py"
