# EN paper, Table 6, GN (Cityscapes test).
# Writes predictions for the benchmark's server to output/; needs cityscapesscripts.
_base_ = "ilm_plugins::mmseg/fcn_r50-d8_cityscapes_gn.py"
test_dataloader = dict(dataset=_base_.server_dataset)
test_evaluator = [dict(_base_.server_metric, output_dir="output/{{fileBasenameNoExtension}}")]
tta_pipeline = _base_.server_tta_pipeline
