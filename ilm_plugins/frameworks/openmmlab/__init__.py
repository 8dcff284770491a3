"""mmcv and MMEngine, and mmdet, mmseg, mmpretrain on them.

The norms' keys (`norms`), and what is registered beside them: networks (`models`), data
sets (`datasets`, `mmseg_shapes`, `mmdet_shapes`), loops that resume exactly
(`deterministic_resume`); ratios that are logged (`ratios`); checks before a run (`checks`) and the
run itself (`train`).
"""

import importlib
import sys
from collections.abc import Sequence

import wrapt

from . import norms

#: Module of a framework -> our modules to import after it, which register what they define.
FOLLOWERS = {
    "mmengine.runner": (f"{__name__}.deterministic_resume", f"{__name__}.ratios"),
    "mmcv.cnn": ("ilm_plugins.frameworks.openmmlab.models.backbones",),
    "mmpretrain.datasets": (f"{__name__}.datasets",),
}


def arm() -> None:
    """Make keys of layers, networks and data sets valid, without importing any framework."""
    norms.arm()
    for module, followers in FOLLOWERS.items():
        import_after(module, followers)


def import_after(module: str, followers: Sequence[str]) -> None:
    """Import our modules as soon as a framework's module is imported, which may never be."""
    wrapt.register_post_import_hook(lambda _: _import(followers), module)


def _import(names: Sequence[str]) -> None:
    # mmcv 1.x comes without MMEngine, in whose registries they enter their classes.
    if "mmengine" not in sys.modules:
        return
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # mmengine-lite comes without Pillow, and then without image translation.
            if error.name != "PIL":
                raise
