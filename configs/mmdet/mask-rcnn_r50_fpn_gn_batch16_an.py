# Not in the papers: of AN's, which has it in both heads and in the backbone, this is the box head,
# in the recipe of the ILM Norm paper.
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch16.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="AN"))))
