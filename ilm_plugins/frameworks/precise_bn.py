"""Have mmpretrain's PreciseBNHook and detectron2's PreciseBN measure EN, SN and SSN, too.

Both compute the running statistics of BatchNorm layers again, with fixed weights. They set
``momentum`` to 1 meanwhile, which EN, SN and SSN obey, too.
"""

import functools
from types import ModuleType

import wrapt
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.mixture import MixtureNorm


class _Check(type):
    """The class of :class:`NormOfBatch`; it decides which modules are instances."""

    def __instancecheck__(cls, module: object) -> bool:
        of_ours = isinstance(module, MixtureNorm) and module.uses_batch_statistics
        return of_ours or isinstance(module, _BatchNorm)


class NormOfBatch(metaclass=_Check):
    """Instances are BatchNorms, and EN, SN and SSN that update their running statistics now."""


def install_import_hooks() -> None:
    """Change mmpretrain's and fvcore's module when it is imported, now or later."""
    wrapt.register_post_import_hook(_accept_our_norms, "mmpretrain.engine.hooks.precise_bn_hook")
    wrapt.register_post_import_hook(_accept_our_norms, "fvcore.nn.precise_bn")


@functools.cache  # once a module
def _accept_our_norms(module: ModuleType) -> None:
    """Replace the class, or the classes, by which a module recognizes BatchNorm."""
    if module.__name__.startswith("fvcore"):
        module.BN_MODULE_TYPES = (*module.BN_MODULE_TYPES, NormOfBatch)
    else:
        module._BatchNorm = NormOfBatch
