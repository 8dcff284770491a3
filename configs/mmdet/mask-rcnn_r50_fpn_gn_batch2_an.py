# Not in the papers: AN's box head in the recipe of the ILM Norm paper. The detector of AN's paper
# has 20 pairs, not 10, in the last two norms of this head, and AN on BatchNorm in its backbone.
_base_ = "_base_/mask-rcnn_r50_fpn_gn_batch2.py"
model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type="AN"))))
