"""Mixed precision for MMEngine's configs: ``--amp``, or an entry ``amp = True`` of the config."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from ...errors import UserError

#: Types of optimizer wrappers that mixed precision replaces.
REPLACED = ("OptimWrapper", "AmpOptimWrapper", OptimWrapper, AmpOptimWrapper)
#: Options of AmpOptimWrapper that have no meaning in bfloat16 on the CPU.
OF_AMP = ("loss_scale", "dtype", "use_fsdp")


class Bfloat16OptimWrapper(OptimWrapper):
    """MMEngine's AmpOptimWrapper for the CPU, which that class refuses.

    Forward passes in training run under torch's autocast to bfloat16; weights, their gradients and
    the optimizer stay in float32. bfloat16 has float32's range, so losses are not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """A context for the forward pass of a model, and MMEngine's for accumulated gradients."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


def mixed(optim_wrapper: Mapping) -> dict:
    """Return a config's ``optim_wrapper`` with mixed precision; the argument is not changed.

    OptimWrapper becomes AmpOptimWrapper, in float16 with scaled losses unless the config has other
    options of it; on the CPU it becomes :class:`Bfloat16OptimWrapper`. Constructors and optimizers
    stay.

    Args:
        optim_wrapper: the config of a single wrapper, or several of them by name for a constructor,
            such as pix2pix's "generator" and "discriminator".

    Raises:
        UserError: there is no optimizer, or a wrapper is of another type.
    """
    if "optimizer" in optim_wrapper:
        return _mixed_wrapper("optim_wrapper", optim_wrapper)
    wrappers = {
        name: _mixed_wrapper(f"optim_wrapper.{name}", part)
        for name, part in optim_wrapper.items()
        if isinstance(part, Mapping) and "optimizer" in part
    }
    if not wrappers:
        raise UserError("amp (--amp): optim_wrapper has no optimizer; leave amp out")
    return {**optim_wrapper, **wrappers}


def _mixed_wrapper(setting: str, wrapper: Mapping) -> dict:
    """Return the config of one wrapper with mixed precision; ``setting`` is its key."""
    kind = wrapper.get("type", "OptimWrapper")
    if kind not in REPLACED:
        raise UserError(
            f"amp (--amp) replaces OptimWrapper, and {setting}.type is {kind}; set "
            f"{setting}.type=OptimWrapper, or leave amp out"
        )
    if get_device() != "cpu":
        return {**wrapper, "type": "AmpOptimWrapper"}
    kept = {key: value for key, value in wrapper.items() if key not in OF_AMP}
    return {**kept, "type": Bfloat16OptimWrapper}
