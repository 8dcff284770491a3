# ILM Norm paper, Table 5, ILM+GN, batch 16: box AP 39.42, AP50 60.63, AP75 42.95;
# mask AP 35.03, AP50 57.25, AP75 36.92 (COCO, in percent).
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch16.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="ILMGN"))))
