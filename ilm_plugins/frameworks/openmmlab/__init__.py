"""OpenMMLab: mmcv and MMEngine, and mmdet, mmseg and mmpretrain, which are built on them.

Registered in their registries: norms (`norms`), networks (`models`), the dataset `shapes`
(`mmseg_shapes`, `mmdet_shapes`), a hook that sets SSN's radius (`radius`).
This package's configs are bases (`shipped_configs`). `config` reads configs, `train` runs them.
"""

import importlib
import sys

#: Module of a framework -> our module to import after it, which registers what it defines.
FOLLOWERS = {
    "mmengine.runner": f"{__name__}.radius",
    "mmcv.cnn": f"{__name__}.models",
    "mmpretrain.models": f"{__name__}.models.aa_resnet",
}


def import_followers(module) -> None:
    # mmcv 1.x comes without MMEngine, in which these modules register classes.
    if "mmengine" in sys.modules:
        importlib.import_module(FOLLOWERS[module.__name__])
