"""Sparse Switchable Normalization: Shao et al., CVPR 2019; a row of EN's Table 2."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import SparseSwitch
from .options import check_fraction
from .switchable import SwitchNorm

#: Buffers that the ratios depend on.
BUFFERS = "radius", "mean_fixed", "var_fixed"


class SparseSwitchNorm(SwitchNorm, nn.GroupNorm):
    r"""Switchable normalization that ends up with one normalizer for the means, one for variances.

    :class:`~ilm_plugins.SwitchNorm`, in which :func:`sparsestmax` with a radius r replaces both
    softmaxes. r = 0 gives ratios of which some may be zero; from :math:`r = \sqrt{1 - 1/K}` on,
    one ratio is 1 and all others are 0 unless the largest logits are equal.

    **The radius** grows linearly from 0 to 1 in training: before each forward pass, a hook sets it
    to the fraction of the iterations that are done, and clips the logits' gradients to the norm 1.
    ``python -m ilm_plugins train`` adds it; in MMEngine it is ``dict(type="RadiusHook")``, in
    detectron2 ``ilm_plugins.frameworks.detectron2.radius.RadiusHook``. In your own loop, use
    ``ilm_plugins.frameworks.radius.RadiusSchedule``. Otherwise r stays 0.

    **Fixed ratios.** :meth:`set_radius` fixes a set of ratios in which one is 1: from then on
    neither its logits nor the radius influence it, and its logits get gradients of zero.

    Parameters and options: SN's; the authors' code has a momentum of 0.003. Buffers: SN's;
    ``radius`` (1); ``mean_fixed``, ``var_fixed`` (K), the ratios once they are fixed, before zeros.

    Example:
        >>> layer = SparseSwitchNorm(64)
        >>> layer.set_radius(0.5)  # halfway through a training
        >>> layer(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    network = SparseSwitch
    initial_values: Mapping[str, float] = {
        **SwitchNorm.initial_values,
        **dict.fromkeys(BUFFERS, 0.0),
    }
    training_hook = "RadiusHook"
    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor

    def register_ratios(self, logits: Tensor) -> None:
        super().register_ratios(logits)
        self.register_buffer("radius", logits.new_zeros(1))
        for name in BUFFERS[1:]:
            self.register_buffer(name, torch.zeros_like(logits))

    @torch.no_grad()
    def set_radius(self, radius: float) -> None:
        """Set the radius; then fix each set of ratios in which one is 1, for good.

        Args:
            radius: from 0 to 1, the fraction of the training's iterations that are done.

        Raises:
            OptionError: the radius is not a number from 0 to 1.
        """
        check_fraction(type(self).__name__, "radius", radius)
        self.radius.fill_(radius)
        t = self.network.named(*self.rescale_tensors())
        if hasattr(t.mean_weight, "full_tensor"):  # sharded by fully_shard; all processes call this
            whole = {name: getattr(t, name).full_tensor() for name in ("mean_weight", "var_weight")}
            t = t._replace(**whole)
        self.mean_fixed[:], self.var_fixed[:] = self.ratios_of(t) == 1

    def to_ratios(self, logits: Tensor, t: Any) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        fixed = torch.stack((t.mean_fixed, t.var_fixed)).to(dtype)
        ratios = sparsestmax(logits.to(dtype), t.radius.to(dtype))
        # In an average of models the fixed ratios may be fractions, which do not sum to 1.
        return torch.where((fixed == 1).any(1, keepdim=True), fixed, ratios)


def set_radius(model: nn.Module, radius: float) -> None:
    """Set the radius of every SSN layer of a model; skip frozen layers, whose ratios stay.

    Args:
        model: any module, or a layer itself.
        radius: see :meth:`SparseSwitchNorm.set_radius`.

    Raises:
        OptionError: the radius is not a number from 0 to 1, and the model has such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, SparseSwitchNorm) and not m.frozen]
    with _whole_parameters(model) if layers else nullcontext():
        for layer in layers:
            layer.set_radius(radius)


def _whole_parameters(model: nn.Module) -> AbstractContextManager:
    """Return a context in which FullyShardedDataParallel shards no parameter."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if fsdp is not None and any(isinstance(module, fsdp) for module in model.modules()):
        return fsdp.summon_full_params(model, writeback=False)
    return nullcontext()


def sparsestmax(logits: Tensor, radius: Tensor) -> Tensor:
    r"""Return ratios that sum to 1; a larger radius makes them sparser.

    1. Project the logits onto the simplex of ratios (sparsemax).
    2. If the point is nearer than r to the centre of its face, move it away to the distance r.
    3. If that leaves the simplex, project again, onto a smaller face, and move the point away from
       the centre of that face on the same sphere; repeat.

    With S the indices of the last face, :math:`S_0` the indices of the first, and c the logits of S
    minus their mean, with zeros elsewhere, this is

    .. math::

        \frac{1_S}{|S|} + c \max\left(1, \frac{\rho}{\lVert c \rVert}\right), \qquad
        \rho^2 = r^2 - \frac{1}{|S|} + \frac{1}{|S_0|},

    because each face contains the largest logits, and a projection onto it scales their c. Where
    all logits of S are equal, c = 0 has no direction, and the ratios are equal, too.
    The logits are (..., K), the radius broadcasts, and the gradient is that within the face S.
    """
    # Differences of equal or nearly equal logits lose digits unless these are near 0.
    logits = logits - logits.detach().amax(-1, keepdim=True)
    dtype, k = logits.dtype, logits.shape[-1]
    tiny = torch.finfo(dtype).tiny
    # Not arange, whose device a trace keeps.
    size = torch.ones_like(logits.detach().reshape(-1, k)[0]).cumsum(0)  # 1 to K
    # Row i of each (K, K) matrix is about the face of the i largest logits.
    among = (size[:, None] >= size).to(dtype)
    top = logits.detach().sort(-1, descending=True).values
    mean = (among * top.unsqueeze(-2)).sum(-1) / size
    squares = (among * (top.unsqueeze(-2) - mean.unsqueeze(-1)).square()).sum(-1)
    # The least ratio on a face is (1 - gap * stretch) / size. S is the largest face within S_0 on
    # which it is positive. `~(... >= 1)` keeps faces of NaN logits, which so reach the ratios.
    gap = size * (mean - top)
    first = (~(gap >= 1)).sum(-1, keepdim=True).to(dtype)
    rho_squared = (radius.square() - 1 / size + 1 / first).clamp(min=0)
    stretched = (rho_squared / squares.clamp(min=tiny)).clamp(min=1) * gap.square()
    # Numbers in place of booleans in products, which quantizers of exported graphs observe.
    size = ((~(stretched >= 1)).to(dtype) * size).amax(-1, keepdim=True)

    inside = (~(logits.detach() < top.gather(-1, size.long() - 1))).to(dtype)
    c = (logits - (logits * inside).sum(-1, keepdim=True) / size) * inside
    squares = c.square().sum(-1, keepdim=True)
    rho_squared = (radius.square() - 1 / size + 1 / first).clamp(min=0)
    has_direction = squares > tiny
    stretch = (rho_squared / squares.where(has_direction, 1)).clamp(min=1).sqrt()
    return inside / size + stretch.where(has_direction, 1) * c
