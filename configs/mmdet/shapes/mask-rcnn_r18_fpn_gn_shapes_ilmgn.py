# Not in the papers: the generated shapes with ILM+GN in the box head.
_base_ = "../_base_/mask-rcnn_r18_fpn_gn_shapes.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="ILMGN"))))
