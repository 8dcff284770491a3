_base_ = "../_base_/mask-rcnn_r18_fpn_gn_shapes.py"
