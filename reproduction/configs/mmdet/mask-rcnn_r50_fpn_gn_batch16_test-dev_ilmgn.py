# ILM Norm paper, Table 5, ILM+GN, batch 16 (COCO test-dev).
# Writes predictions for the benchmark's server to output/.
_base_ = "ilm_plugins::mmdet/mask-rcnn_r50_fpn_gn_batch16_ilmgn.py"
test_dataloader = dict(dataset=_base_.server_dataset)
test_evaluator = dict(_base_.server_metric, outfile_prefix="output/{{fileBasenameNoExtension}}")
