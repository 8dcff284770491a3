"""The layers' keys in mmcv's registries of norms, and what ``norm_eval`` means to EN and SN.

mmcv 1.x looks a type up in its own ``NORM_LAYERS``, mmcv 2.x in MMEngine's ``MODELS``. Either gets
the keys as soon as it is imported, and neither is imported here.
"""

import functools
import warnings
from collections.abc import Mapping
from types import ModuleType

import wrapt
from torch import nn

from ...layers import NORMS
from ...layers.mixture import MixtureNorm

#: Module that defines a registry of norms -> the registry's name there.
REGISTRIES = {"mmengine.registry.root": "MODELS", "mmcv.cnn.bricks.registry": "NORM_LAYERS"}

#: Module of mmcv's that registers norms, and their keys, which it wants to find free.
MMCVS_NORMS = "mmcv.cnn.bricks.norm"
MMCVS_KEYS = {"BN", "BN1d", "BN2d", "BN3d", "SyncBN", "GN", "LN", "IN", "IN1d", "IN2d", "IN3d"}

#: torch's norms by mmcv's keys, for models that are built without mmcv.
TORCH_NORMS = {"BN": nn.BatchNorm2d, "GN": nn.GroupNorm, "IN": nn.InstanceNorm2d}

#: Modules that define the BaseModule from which backbones derive.
BASE_MODULES = ("mmengine.model.base_module", "mmcv.runner.base_module")


def arm() -> None:
    """Make the keys of :data:`ilm_plugins.NORMS` valid in every ``norm_cfg``.

    Works whether OpenMMLab's packages were imported before, are imported later, or never.
    """
    for module, name in REGISTRIES.items():
        wrapt.register_post_import_hook(lambda m, name=name: _fill(getattr(m, name)), module)
    wrapt.register_post_import_hook(_fill_with_all, MMCVS_NORMS)
    for module in BASE_MODULES:
        wrapt.register_post_import_hook(_obey_norm_eval, module)


def _fill(registry) -> None:
    register(registry, classes={key: of for key, of in NORMS.items() if key not in MMCVS_KEYS})


def _fill_with_all(module: ModuleType) -> None:
    register(getattr(module, "MODELS", None) or module.NORM_LAYERS)


def register(registry, force: bool = False, classes: Mapping[str, type] = NORMS) -> None:
    """Enter the layers into a registry, each once, however often this is called.

    Args:
        registry: mmcv's ``NORM_LAYERS``, MMEngine's ``MODELS``, or one derived from that.
        force: replace what another package has registered under one of the keys, which otherwise
            stays, with a warning.
        classes: other classes than the layers, by their keys.
    """
    taken = []
    for key, of_ours in classes.items():
        present = registry.module_dict.get(key)
        reloaded = present is not None and _path(present) == _path(of_ours)
        if present is None or reloaded or force:
            registry.register_module(name=key, module=of_ours, force=present is not None)
        else:
            taken.append(f"{key} ({_path(present)})")
    if taken:
        _warn_once(
            f"{registry.name} has {', '.join(taken)} already, which stays; to have ilm_plugins' "
            "instead, call ilm_plugins.frameworks.openmmlab.norms.register(registry, "
            "force=True), or give the class itself as the type"
        )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _obey_norm_eval(module: ModuleType) -> None:
    """Let ``norm_eval=True`` put EN and SN, too, into evaluation while their backbone trains.

    Backbones do so by a loop over BatchNorm alone, after a call of ``BaseModule.train``.
    """
    # This package may have been imported anew, with classes of its own.
    original = getattr(module.BaseModule.train, "_ilm_plugins_original", module.BaseModule.train)

    def train(self, mode: bool = True):
        result = original(self, mode)
        if mode and getattr(self, "norm_eval", False):
            for layer in self.modules():
                if isinstance(layer, MixtureNorm):
                    layer.eval()
        return result

    train._ilm_plugins_original = original
    module.BaseModule.train = train
