"""OpenMMLab: mmcv and MMEngine, and mmdet, mmseg and mmpretrain, which are built on them.

Registered in their registries: norms (`norms`), networks (`models`), data sets (`datasets`,
`mmseg_shapes`, `mmdet_shapes`), a training loop that resumes exactly (`deterministic_resume`),
hooks that log ratios (`ratios`) and set SSN's radius (`radius`). This package's configs are bases
(`shipped_configs`). Runs: checks before a run (`checks`), the run (`train`).
"""

import importlib
import sys
from collections.abc import Sequence

import wrapt

from . import norms, shipped_configs

#: Module of a framework -> our modules to import after it, which register what they define.
FOLLOWERS = {
    "mmengine.runner": tuple(
        f"{__name__}.{name}" for name in ("deterministic_resume", "radius", "ratios")
    ),
    "mmcv.cnn": (f"{__name__}.models",),
    "mmpretrain.datasets": (f"{__name__}.datasets",),
    "mmpretrain.models": tuple(f"{__name__}.models.{name}" for name in ("aa_resnet", "crop_flip")),
}


def install_import_hooks() -> None:
    """Make this package's norms, networks and data sets valid in configs; import no framework."""
    norms.install_import_hooks()
    shipped_configs.install_import_hooks()
    for module, followers in FOLLOWERS.items():
        import_after(module, followers)


def import_after(module: str, followers: Sequence[str]) -> None:
    """Import the modules ``followers`` as soon as ``module`` is imported, now or later."""
    wrapt.register_post_import_hook(lambda _: _import(followers), module)


def _import(names: Sequence[str]) -> None:
    """Import modules that register classes in MMEngine; do nothing unless MMEngine is imported.

    A module that needs Pillow is skipped if Pillow is not installed; other errors pass unchanged.
    """
    # mmcv 1.x comes without MMEngine.
    if "mmengine" not in sys.modules:
        return
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # mmengine-lite comes without Pillow, which only image translation needs.
            if error.name != "PIL":
                raise
