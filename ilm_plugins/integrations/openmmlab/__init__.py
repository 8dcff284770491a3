"""mmcv and MMEngine, and mmdet, mmseg, mmpretrain on them.

The norms' keys (`norms`), and what is registered beside them: backbones (`ilm_plugins.models`) and
data sets (`datasets`, `mmseg_shapes`, `mmdet_shapes`); training (`train`).
"""

import importlib
import sys

import wrapt

from . import norms

#: Package whose import brings that of a module of ours, which registers what it defines.
FOLLOWERS = {"mmcv.cnn": "ilm_plugins.models", "mmpretrain.datasets": f"{__name__}.datasets"}


def arm() -> None:
    """Make keys of layers, backbones and data sets valid, without importing any framework."""
    norms.arm()
    for package, follower in FOLLOWERS.items():
        wrapt.register_post_import_hook(lambda _, name=follower: _follow(name), package)


def _follow(name: str) -> None:
    # mmcv 1.x knows no MMEngine, where these are to be registered.
    if "mmengine" in sys.modules:
        importlib.import_module(name)
