"""Each framework reads our configs by its own means; the argument is the folder that has them."""

import sys

import ilm_plugins
from detectron2.config import get_cfg
from mmengine.config import Config

path = ilm_plugins.get_config_file("mmseg/fcn_r50-d8_ade20k_en.py")
assert path.startswith(sys.argv[1]), path
expected = Config.fromfile(path).to_dict()
assert Config.fromfile("mine.py").to_dict() == expected
cfg = get_cfg()
cfg.merge_from_file("mine.yaml")
assert cfg.MODEL.ROI_BOX_HEAD.NORM == "EN"
