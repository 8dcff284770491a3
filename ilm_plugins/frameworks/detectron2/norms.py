"""Make detectron2's ``get_norm`` accept the names of this package's layers.

detectron2 has no registry of norms: ``get_norm`` looks a string up in a local dict. Once
detectron2 has defined it, a function that looks for our names first replaces it, under each name in
each loaded module; other references, as in a functools.partial, keep the old one. Our names are
called keys below. A key that was valid before this package replaced ``get_norm``, because another
package registered it, keeps its meaning; such keys are called taken.
"""

import functools
import sys
import warnings
from types import ModuleType

import wrapt
from torch import nn

from ...foreign_norms import TAKEN
from ...layers import NORMS, freeze, norm_key, parse_call
from ...layers.mixture import MixtureNorm
from ...surgery.fusing import CONTAINERS, Container


def extend_get_norm(module: ModuleType) -> None:
    """Wrap ``get_norm``, once; warn of new keys that it builds a layer for already."""
    if not hasattr(module, "_ilm_plugins_get_norm"):
        _wrap_get_norm(module)
        name = "FrozenBatchNorm2d.convert_frozen_batchnorm"
        wrapt.wrap_function_wrapper(module, name, _freeze_mixtures)
        CONTAINERS["detectron2.layers.wrappers.Conv2d"] = Container(
            lambda convolution: [("norm", "activation")]
        )
    get_norm = module._ilm_plugins_get_norm
    new = {key: _resolves(get_norm.__wrapped__, key) for key in NORMS if key not in get_norm.theirs}
    get_norm.theirs |= new
    taken = [key for key, theirs in new.items() if theirs]
    TAKEN.update(taken)
    if taken:
        warnings.warn(
            f"detectron2's get_norm knows {', '.join(taken)} already; that meaning is kept, and "
            "ilm_plugins' layers of these names can be given as callables only",
            stacklevel=2,
        )


def _freeze_mixtures(convert, _cls, args: tuple, options: dict) -> nn.Module:
    """Call ``convert``, which freezes BatchNorms; freeze mixtures in its result, and return it."""
    result = convert(*args, **options)
    for layer in result.modules():
        if isinstance(layer, MixtureNorm):
            freeze(layer)
    return result


def _wrap_get_norm(module: ModuleType) -> None:
    """Replace ``get_norm``, in every module that has it, by a function that knows our keys."""
    original = module.get_norm

    @functools.wraps(original)
    def get_norm(norm, out_channels):
        key = norm_key(norm) if isinstance(norm, str) else None
        if key is None or get_norm.theirs.get(key):
            return original(norm, out_channels)
        _, options = parse_call(norm)
        return NORMS[key](out_channels, **options)

    get_norm.theirs = {}  # key -> whether ``original`` builds a layer for it
    module._ilm_plugins_get_norm = get_norm
    for holder in list(sys.modules.values()):
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            if value is original:
                setattr(holder, name, get_norm)


def _resolves(get_norm, key: str) -> bool:
    try:
        get_norm(key, 64)
    except Exception:  # another package's get_norm may raise anything for a key it does not know
        return False
    return True
