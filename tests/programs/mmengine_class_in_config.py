"""mmcv builds a layer that a config names by its class; the argument is the config."""

import sys

from mmengine.config import Config

norm = Config.fromfile(sys.argv[1]).model.norm_cfg

from mmcv.cnn import build_norm_layer

_, layer = build_norm_layer(norm, 32)
assert type(layer).__name__ == "ExemplarNorm", layer
