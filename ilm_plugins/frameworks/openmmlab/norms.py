"""Register this package's layers in mmcv's registries; make hooks and options reach the mixtures.

mmcv 1.x looks a type up in its own ``NORM_LAYERS``, mmcv 2.x in MMEngine's ``MODELS``. The layers
are registered as soon as either is imported; this module imports neither.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ... import checkpoints
from ...errors import OptionError, warn_once
from ...foreign_norms import FRAMEWORKS, TAKEN, Framework, path_of, with_tensors
from ...layers import NORMS
from ...layers.base import AdaptiveNorm
from ...layers.mixture import RUNNING, MixtureNorm
from ...surgery.fusing import ACTIVATIONS, CONTAINERS, Container
from ..checkpoints import CONVERT_FILE, describe_other_norms

#: mmcv's module that registers its norms, and their keys, which must be free until then.
MMCVS_NORMS = "mmcv.cnn.bricks.norm"
MMCVS_KEYS = {"BN", "BN1d", "BN2d", "BN3d", "SyncBN", "GN", "LN", "IN", "IN1d", "IN2d", "IN3d"}


def register_layers(module: ModuleType) -> None:
    """Make the keys of :data:`ilm_plugins.NORMS` valid in every ``norm_cfg``."""
    registry = module.MODELS if hasattr(module, "MODELS") else module.NORM_LAYERS
    kept = () if module.__name__ == MMCVS_NORMS else MMCVS_KEYS
    register(registry, {key: cls for key, cls in NORMS.items() if key not in kept})
    FRAMEWORKS["openmmlab"] = Modules()
    CONTAINERS["mmcv.cnn.bricks.conv_module.ConvModule"] = Container(
        _pairs_of_conv_module, guard=_refuse_parts
    )
    ACTIVATIONS["mmcv.cnn.bricks.swish.Swish"] = "silu"
    ACTIVATIONS["mmcv.cnn.bricks.hswish.HSwish"] = "hardswish"


def register(registry, classes: Mapping[str, type] = NORMS) -> None:
    """Register classes by key; another package's class of the same key stays, with a warning."""
    taken = []
    for key, cls in classes.items():
        present = registry.module_dict.get(key)
        if present is None or path_of(present) == path_of(cls):  # the same, or it was reloaded
            registry.register_module(name=key, module=cls, force=True)
        else:
            TAKEN.add(key)
            taken.append(f"{key} ({path_of(present)})")
    if taken:
        warn_once(
            f"{registry.name} has {', '.join(taken)} already, which stays; to have ilm_plugins' "
            "instead, give the class itself as the type"
        )


def _pairs_of_conv_module(module: Any) -> Iterator[tuple[str, str]]:
    """Yield the names of norm and activation if the activation follows the norm."""
    is_next = module.order.index("act") == module.order.index("norm") + 1
    if is_next and module.with_norm and module.with_activation:
        yield module.norm_name, "activate"


def _refuse_parts(module: Any, args: tuple, options: dict) -> None:
    """Raise OptionError if a call of a ConvModule leaves norm or activation out."""
    called = dict(zip(("x", "activate", "norm"), args, strict=False)) | options
    if not (called.get("activate", True) and called.get("norm", True)):
        raise OptionError(
            "a ConvModule whose norm applies the activation was called without one of them; call "
            "surgery.revert, or leave this module out of fusing by match"
        )


class Modules(Framework):
    """MMEngine's BatchNorm of maps of any number of dimensions, and mmcv's ConvModule."""

    def as_replaced(self, norm: Any, path: str) -> nn.Module | None:
        module, _, name = path.rpartition(".")
        if path != "mmengine.model.utils._BatchNormXd" or not isinstance(norm, _BatchNorm):
            return None
        general = getattr(import_module(module), name)
        return with_tensors(general(norm.num_features, norm.eps, norm.momentum, norm.affine), norm)

    def finish(self, model: nn.Module) -> None:
        """Have each ConvModule choose again whether it fuses its convolution with BN."""
        for module in model.modules():
            if getattr(module, "efficient_conv_bn_eval_forward", None):
                module.turn_on_efficient_conv_bn_eval()


@functools.cache  # wrap it once
def obey_norm_eval(module: ModuleType) -> None:
    """Have ``norm_eval=True`` reach the mixtures; backbones set only BatchNorm themselves."""
    wrapt.wrap_function_wrapper(module, "BaseModule.train", _train)


def _train(wrapped, model: nn.Module, args: tuple, options: dict) -> nn.Module:
    result = wrapped(*args, **options)
    if model.training and getattr(model, "norm_eval", False):
        for layer in model.modules():
            if isinstance(layer, MixtureNorm):
                layer.eval()
    return result


@functools.cache  # wrap it once
def share_statistics(module: ModuleType) -> None:
    """Have SyncNormHook average the mixtures' running statistics over processes, as BatchNorm's."""
    wrapt.wrap_function_wrapper(module, "get_norm_states", _norm_states)


def _norm_states(wrapped, _instance, args: tuple, options: dict) -> dict:
    states = wrapped(*args, **options)
    (model,) = (*args, *options.values())
    for name, layer in model.named_modules():
        if isinstance(layer, MixtureNorm) and layer.tracks_statistics:
            states.update({f"{name}.{buffer}": getattr(layer, buffer) for buffer in RUNNING})
    return states


@functools.cache  # wrap it once
def tell_other_norms(module: ModuleType) -> None:
    """Have MMEngine warn of weights of another norm, by whatever way it loads them."""
    wrapt.wrap_function_wrapper(module, "load_state_dict", _load_state_dict)


def _load_state_dict(wrapped, _instance, args: tuple, options: dict) -> Any:
    result = wrapped(*args, **options)
    model = unwrapped_model(args[0] if args else options["module"])
    state = args[1] if len(args) > 1 else options["state_dict"]
    if not any(isinstance(layer, AdaptiveNorm) for layer in model.modules()):
        return result
    wanted = model.state_dict().keys()
    state = checkpoints.name_variances(state, wanted)
    absent = {*checkpoints.find_absent(state, model)}
    rejected = state.keys() - (wanted - absent)
    if told := describe_other_norms(model, absent, rejected):
        message = (
            f"the checkpoint for {type(model).__name__} has {told}: {CONVERT_FILE}; ignore this if "
            "load_from loads converted weights afterwards"
        )
        import_module("mmengine.logging").print_log(message, "current", logging.WARNING)
    return result


def unwrapped_model(model: nn.Module) -> nn.Module:
    """Return a model of MMEngine without its wrappers for several processes and for TTA."""
    kinds = import_module("mmengine.model")
    while kinds.is_model_wrapper(model) or isinstance(model, kinds.BaseTTAModel):
        model = model.module
    return model
