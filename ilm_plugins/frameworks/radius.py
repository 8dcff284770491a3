"""The schedule of SSN's radius, for the hooks of both frameworks."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..layers import SparseSwitchNorm, set_radius

#: The norm to which the gradient of each set of SSN's logits is clipped, as in its authors' code.
MAX_NORM = 1.0


class RadiusSchedule:
    """Sets the radius of a model's SSN layers, and clips their logits' gradients before steps.

    Args:
        model: with any number of :class:`~ilm_plugins.SparseSwitchNorm` layers.
        optimizers: the optimizers of the model. Before each step, the gradients of each layer's
            ``mean_weight`` and ``var_weight`` are clipped to norm 1, as in the authors' code of
            SSN.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        self.model = model
        layers = [m for m in model.modules() if isinstance(m, SparseSwitchNorm)]
        self.logits = [p for m in layers for p in (m.mean_weight, m.var_weight)]
        for optimizer in optimizers if layers else ():
            optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Optimizer, args: tuple, options: dict) -> Any:
        """Clip the gradients, or have a closure clip the gradients that it computes."""
        closure = args[1] if len(args) > 1 else options.get("closure")
        if closure is None:
            return self._clip(optimizer)

        def clipped() -> Any:
            loss = closure()
            self._clip(optimizer)
            return loss

        return (args[0],), {**options, "closure": clipped}

    def _clip(self, optimizer: Optimizer) -> None:
        # A fused optimizer gets gradients that are still scaled by torch's GradScaler.
        scale = getattr(optimizer, "grad_scale", None)
        limit = MAX_NORM if scale is None else MAX_NORM * float(scale)
        for logits in self.logits:
            nn.utils.clip_grad_norm_(logits, limit)

    def set(self, iteration: int, iterations: int) -> None:
        """Set the radius to ``iteration / iterations``, which is 0 before the first iteration."""
        set_radius(self.model, iteration / iterations)
