"""mmcv and MMEngine, and mmdet, mmseg, mmpretrain on them.

The norms' keys (`norms`), and what is registered beside them: networks (`ilm_plugins.models`), data
sets (`datasets`, `mmseg_shapes`, `mmdet_shapes`), image translation (`translation`, `exact`);
ratios that are logged (`ratios`); training (`train`).
"""

import importlib
import sys

import wrapt

from . import norms

#: Package whose import brings that of modules of ours, which register what they define.
FOLLOWERS = {
    "mmengine.runner": (
        "ilm_plugins.models.pix2pix",
        f"{__name__}.exact",
        f"{__name__}.ratios",
        f"{__name__}.translation",
    ),
    "mmcv.cnn": ("ilm_plugins.models.backbones",),
    "mmpretrain.datasets": (f"{__name__}.datasets",),
}


def arm() -> None:
    """Make keys of layers, networks and data sets valid, without importing any framework."""
    norms.arm()
    for package, followers in FOLLOWERS.items():
        wrapt.register_post_import_hook(lambda _, names=followers: _follow(names), package)


def _follow(names: tuple[str, ...]) -> None:
    # mmcv 1.x knows no MMEngine, where these are to be registered.
    if "mmengine" not in sys.modules:
        return
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # mmengine-lite comes without Pillow, and then without image translation.
            if error.name != "PIL":
                raise
