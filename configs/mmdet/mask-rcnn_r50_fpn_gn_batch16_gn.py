# ILM Norm paper, Table 5, GN, batch 16: box AP 39.1, AP50 60.33, AP75 42.51;
# mask AP 34.77, AP50 56.88, AP75 36.79 (COCO, in percent).
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch16.py"
