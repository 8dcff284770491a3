# ILM Norm paper, Table 5, ILM+GN, batch 2: box AP 22.68, AP50 38.28, AP75 23.68;
# mask AP 21.19, AP50 36.08, AP75 21.92 (COCO, in percent).
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch2.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="ILMGN"))))
