"""The layers' keys in mmcv's registries of norms, and what ``norm_eval`` means to EN and SN.

mmcv 1.x looks a type up in its own ``NORM_LAYERS``, mmcv 2.x in MMEngine's ``MODELS``. Either gets
the keys as soon as it is imported, and neither is imported here.
"""

import warnings
from collections.abc import Mapping
from types import ModuleType

import wrapt

from ...layers import NORMS
from ...layers.statistics import MixtureNorm

#: Module that defines a registry of norms -> the registry's name there.
REGISTRIES = {"mmengine.registry.root": "MODELS", "mmcv.cnn.bricks.registry": "NORM_LAYERS"}

#: Modules that define the BaseModule from which backbones derive.
BASE_MODULES = ("mmengine.model.base_module", "mmcv.runner.base_module")


def arm() -> None:
    """Make the keys of :data:`ilm_plugins.NORMS` valid in every ``norm_cfg``.

    Works whether OpenMMLab's packages were imported before, are imported later, or never.
    """
    for module, name in REGISTRIES.items():
        wrapt.register_post_import_hook(lambda m, name=name: register(getattr(m, name)), module)
    for module in BASE_MODULES:
        wrapt.register_post_import_hook(_obey_norm_eval, module)


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
        warnings.warn(
            f"{registry.name} has {', '.join(taken)} already, which stays; to have ilm_plugins' "
            "instead, call ilm_plugins.integrations.openmmlab.norms.register(registry, "
            "force=True), or give the class itself as the type",
            stacklevel=2,
        )


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _obey_norm_eval(module: ModuleType) -> None:
    """Let ``norm_eval=True`` put EN and SN, too, into evaluation while their backbone trains.

    Backbones do so by a loop over BatchNorm alone, after a call of ``BaseModule.train``.
    """
    if getattr(module.BaseModule.train, "_ilm_plugins", False):
        return
    original = module.BaseModule.train

    def train(self, mode: bool = True):
        result = original(self, mode)
        if mode and getattr(self, "norm_eval", False):
            for layer in self.modules():
                if isinstance(layer, MixtureNorm):
                    layer.eval()
        return result

    train._ilm_plugins = True
    module.BaseModule.train = train
