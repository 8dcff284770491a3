"""What makes the layers usable in detectron2, OpenMMLab and others; rooms below import none."""

import sys
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from .. import foreign_norms
from ..errors import one_line, warn_once
from .config import AS_IS, OpenConfig, open_config
from .config_files import framework_of, installed
from .openmmlab import names_by_type, remark_on_name
from .registrations import Registrations

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "AS_IS",
    "OpenConfig",
    "Registrations",
    "commit",
    "framework_of",
    "install_import_hooks",
    "installed",
    "is_complete_record",
    "last_checkpoint",
    "open_config",
    "read_record",
    "register",
    "versions",
]

#: Public names that need torch -> their module, imported on first use.
_MODULES = {
    "commit": "run.environment",
    "is_complete_record": "run.record",
    "last_checkpoint": "checkpoints",
    "read_record": "run.record",
    "versions": "run.environment",
}

#: Module of a framework -> our function, which is called with the module once it is imported. Only
#: then is the function's own module imported, and torch with it.
HOOKS = {
    "detectron2.layers.batch_norm": "detectron2.norms:extend_get_norm",
    "detectron2.modeling.meta_arch.retinanet": "detectron2.retinanet:extend_retinanet_head",
    "detectron2.utils.file_io": "detectron2.shipped_configs:register_handler",
    "fvcore.common.config": "detectron2.shipped_configs:find_bases",
    "mmcv.cnn.bricks.norm": "openmmlab.norms:register_layers",
    "mmcv.cnn.bricks.registry": "openmmlab.norms:register_layers",
    "mmcv.runner.base_module": "openmmlab.norms:obey_norm_eval",
    "mmdet.core.hook.sync_norm_hook": "openmmlab.norms:share_statistics",  # mmdet 2.x
    "mmdet.engine.hooks.sync_norm_hook": "openmmlab.norms:share_statistics",
    "mmengine.config.config": "openmmlab.shipped_configs:find_bases",
    "mmengine.model.base_module": "openmmlab.norms:obey_norm_eval",
    "mmengine.registry.root": "openmmlab.norms:register_layers",
    "mmengine.runner": "openmmlab.radius:register_hook",
    "mmengine.runner.checkpoint": "openmmlab.norms:tell_other_norms",
    "mmpose.engine.hooks.sync_norm_hook": "openmmlab.norms:share_statistics",
    "timm": "timm:add_norms",
    "timm.models._builder": "timm:tell_other_norms",
    "transformers.modeling_utils": "transformers:initialize_layers",
}

foreign_norms.SHARED_HEADS.add("detectron2.modeling.meta_arch.retinanet.RetinaNetHead")
#: What timm's norms run after the normalization.
foreign_norms.IGNORED_TENSORS.add(r"(drop|act)\..+")
foreign_norms.OTHER_NAMES.append(names_by_type)
foreign_norms.NAME_REMARKS.append(remark_on_name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def install_import_hooks() -> None:
    """Have every framework, once it is imported, know this package's layers and configs."""
    for module, function in HOOKS.items():
        wrapt.register_post_import_hook(partial(_extend, function), module)


def _extend(function: str, module: ModuleType) -> None:
    """Call our function; a release that it does not fit stays as it is, with a warning."""
    file, _, name = function.partition(":")
    try:
        getattr(import_module(f".{file}", __name__), name)(module)
    except Exception as error:
        package = module.__name__.partition(".")[0]
        version = getattr(sys.modules[package], "__version__", "of this version")
        warn_once(
            f"ilm_plugins does not fit {package} {version}, and leaves {module.__name__} as it is "
            f"({type(error).__name__}: {one_line(error)}); give layers as classes, or install "
            f"another {package}"
        )


def register(key: str, layer: "type[nn.Module]") -> None:
    """Make your own layer valid as a NORM in detectron2, in a ``norm_cfg``, and in timm.

    Adds the layer to :data:`ilm_plugins.NORMS`, and calls :func:`install_import_hooks`. Registering
    the same layer again does nothing. Where a framework already has another layer under this key,
    that layer stays in this framework, with a warning.

    Args:
        key: the name of the layer in configs, a Python identifier.
        layer: a class that takes the number of channels first, and its options by name; timm also
            gives ``device`` and ``dtype``. If it derives from nn.GroupNorm, the frameworks treat it
            as a norm: weight decay, freezing, initialization.

    Raises:
        ValueError: the key is not an identifier, or is the key of another layer; or ``layer`` is
            not a subclass of nn.Module.
    """
    from torch import nn

    from ..layers import NORMS

    if not isinstance(key, str) or not key.isidentifier():
        raise ValueError(f"register: key {key!r} is no identifier; give a name such as 'MyNorm'")
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        raise ValueError(f"register: {layer!r} is no class of nn.Module; give the class itself")
    if NORMS.get(key, layer) is not layer:
        raise ValueError(
            f"register: {key!r} is {NORMS[key].__name__} already; choose another key for "
            f"{layer.__name__}"
        )
    NORMS[key] = layer
    install_import_hooks()
