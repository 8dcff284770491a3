# Not in the papers: the ILM+GN config beside it, with GN.
_base_ = "../_base_/mask-rcnn_r18_fpn_gn_shapes.py"
