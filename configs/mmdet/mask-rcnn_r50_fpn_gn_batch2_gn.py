# ILM Norm paper, Table 5, GN, batch 2: box AP 22.4, AP50 37.65, AP75 23.56;
# mask AP 20.88, AP50 35.43, AP75 21.57 (COCO, in percent).
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch2.py"
