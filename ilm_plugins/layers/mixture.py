"""The base class of the mixtures: the normalizers that they mix, and BN's running statistics."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.utils import parametrize

from ..errors import OptionError
from ..ops import Activation, SharedBatch, coarsen, duplicate, over_batch
from ..ops.networks import NORMALIZERS
from .base import KEPT, AdaptiveNorm
from .options import check_choice, check_eps, check_fraction, check_positive, fit_width

#: Names of the running variance in a mixture, and in BatchNorm.
VARIANCE, BN_VARIANCE = "running_variance", "running_var"
#: Attributes that a copy makes anew.
NOT_COPIED = {"_compiled_call_impl", KEPT}
#: Initial values of BN's running statistics.
RUNNING = {"running_mean": 0.0, VARIANCE: 1.0}


class MixtureNorm(AdaptiveNorm):
    """A mixture of K of the normalizers IN, LN, BN and GN: EN, SN or SSN.

    In training, BN uses the batch's statistics, and updates running statistics in torch's
    convention: ``momentum`` is the weight of the new value, the stored variance is unbiased. In
    evaluation, it uses the running statistics.

    **Several processes.** Each process uses the statistics of its own batch, as in the papers. With
    ``sync=True`` the statistics cover the batches of all processes of torch.distributed's default
    group, or of the group that is given, weighted by values. In training, every process must then
    run the layer, forward and backward, the same number of times, also with an empty batch, whose
    output must be a term of the loss. Evaluation, frozen layers and single processes communicate
    nothing. Second derivatives, torch.func and export raise RuntimeError in training with ``sync``;
    torch.compile leaves such a layer uncompiled.

    **Freezing.** :func:`ilm_plugins.freeze` and detectron2's FREEZE_AT freeze a layer, which then
    uses its running statistics in training mode, too, without updates. ``requires_grad_(False)``
    fixes only the parameters, as in BatchNorm.

    Buffers: ``running_mean``, ``running_variance`` (C), None without BN. If they are set to None,
    the batch's statistics are used in evaluation, too. The variance has another name than
    BatchNorm's, which loads, too, so that other packages do not fuse the layer into a convolution.

    For the other arguments see :class:`~ilm_plugins.layers.base.AdaptiveNorm`.

    Args:
        momentum: weight of the newest batch in the running statistics; 0 keeps them as they are.
        normalizers: the K normalizers to mix, of "IN", "LN", "BN" and "GN", in the order of the
            parameters' rows.
        num_groups: groups of "GN"; by default 32, or less where 32 does not divide C; unused
            without "GN".
        sync: True, or a process group, to compute BN's statistics in training over its processes.
            Unused without "BN".
    """

    running_mean: Tensor | None
    running_variance: Tensor | None
    initial_values: Mapping[str, float] = {**AdaptiveNorm.initial_values, **RUNNING}

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        normalizers: Sequence[str] = ("IN", "LN", "BN"),
        num_groups: int | str = "auto",
        sync: bool | distributed.ProcessGroup = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        check_normalizers(name, normalizers)
        num_channels = check_positive(name, "num_channels", num_channels)
        eps = check_eps(name, eps)
        momentum = check_momentum(name, momentum)
        check_sync(name, sync)
        groups = 1
        if "GN" in normalizers:
            (groups,) = fit_width(type(self), num_channels, num_groups=num_groups)
        super().__init__(1, num_channels, eps, device=device, dtype=dtype)
        self.momentum = momentum
        self.sync = sync
        self.normalizers = tuple(normalizers)
        self.num_groups = groups
        self.moment_groups = num_channels  # channels, as for IN; coarser moments follow from these
        for name, initial in RUNNING.items():
            values = torch.full((num_channels,), initial, device=device, dtype=dtype)
            self.register_buffer(name, values if "BN" in normalizers else None)
        self.register_ratios(self.weight.new_ones(len(normalizers)))

    def unused_options(self) -> list[str]:
        unused = {"num_groups": "GN", "momentum": "BN"}
        return [option for option, name in unused.items() if name not in self.normalizers]

    def register_ratios(self, logits: Tensor) -> None:
        """Register the ratios' logits (K) with these initial values; EN's network has none."""

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether forward now uses the batch's statistics for BN."""
        return "BN" in self.normalizers and self.training and not self.frozen

    @property
    def tracks_statistics(self) -> bool:
        """Whether BN has running statistics, which nobody has set to None."""
        return self._stored_statistics()[0] is not None

    @property
    def updates_running_stats(self) -> bool:
        """Whether forward now updates the running statistics: not for a momentum of 0."""
        return self.uses_batch_statistics and self.tracks_statistics and self.momentum > 0

    @property
    def synchronizes(self) -> bool:
        """Whether forward now uses the batch statistics of several processes."""
        if self.sync is False or not self.uses_batch_statistics:
            return False
        has_group = distributed.is_available() and distributed.is_initialized()
        return has_group and distributed.get_world_size(self._process_group) > 1

    @property
    def _process_group(self) -> distributed.ProcessGroup | None:
        return None if isinstance(self.sync, bool) else self.sync

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **options) -> None:
        # BatchNorm's variance comes with its mean.
        if prefix + BN_VARIANCE in state_dict and hasattr(self, VARIANCE):
            state_dict.setdefault(prefix + VARIANCE, state_dict.pop(prefix + BN_VARIANCE))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def __deepcopy__(self, memo: dict) -> "MixtureNorm":
        memo[id(self.sync)] = self.sync  # A process group cannot be copied.
        copied = memo[id(self)] = self.__new__(type(self))
        # A parametrized module has no state to pickle, but one to copy.
        is_parametrized = parametrize.is_parametrized(self)
        state = self.__dict__ if is_parametrized else self.__getstate__()
        state = {name: value for name, value in state.items() if name not in NOT_COPIED}
        copied.__setstate__(copy.deepcopy(state, memo))
        return copied

    def normalize(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        if self.momentum is None:  # as somebody has set it later
            check_momentum(type(self).__name__, None)
        running: tuple = ()
        if self.updates_running_stats:
            running = *self._stored_statistics(), self.momentum
            if (tracked := self._buffers.get("num_batches_tracked")) is not None:
                running = *running, tracked
        if self.synchronizes:
            return self._forward_synchronized(x, activation, running)
        return self._normalize_by_moments(x, activation, running)

    @torch._disable_dynamo  # as torch.compiler.disable, which imports the compiler at once
    def _forward_synchronized(
        self, x: Tensor, activation: Activation | None, running: tuple
    ) -> Tensor:
        """Normalize x by the batch statistics of all processes; each must call it."""
        batch = SharedBatch(x, self._process_group)

        def rescale(mean, var, *tensors):
            *inputs, _, _ = tensors  # the last two stand for running statistics
            return self.rescale(mean, var, *inputs, *batch.pool(mean, var, *inputs))

        return self._normalize_by_moments(x, activation, running, rescale, batch)

    def rescale_tensors(self) -> tuple[Tensor | None, ...]:
        running = (None, None) if self.uses_batch_statistics else self._stored_statistics()
        return *super().rescale_tensors(), *running

    def _stored_statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the running mean and variance (C); two Nones if either is None."""
        # Buffers are found faster than attributes, of which there may be parameters in their place.
        mean, var = self._buffers.get("running_mean"), self._buffers.get(VARIANCE)
        if mean is None or var is None:
            mean, var = self.running_mean, self.running_variance
        return (None, None) if mean is None or var is None else (mean, var)

    def normalizer_moments(
        self, mean: Tensor, var: Tensor, running_mean: Tensor | None, running_var: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (mu_k, sigma_k^2) of each normalizer: LN's (N, 1), BN's (1, C), others (N, C)."""
        moments: list[tuple[Tensor, Tensor]] = []
        for normalizer in self.normalizers:
            if normalizer == "IN":
                moments.append((mean, var))
            elif normalizer == "BN":
                if running_mean is None or running_var is None:
                    moments.append(over_batch(mean, var))
                else:
                    moments.append((running_mean.unsqueeze(0), running_var.unsqueeze(0)))
            elif normalizer == "LN":
                moments.append(coarsen(mean, var, 1))
            else:
                group_mean, group_var = coarsen(mean, var, self.num_groups)
                c = self.num_channels
                moments.append((duplicate(group_mean, c), duplicate(group_var, c)))
        return moments


def check_normalizers(layer: str, normalizers: Any) -> None:
    is_list = isinstance(normalizers, list | tuple) and len(normalizers) > 0
    if not is_list or any(normalizers.count(normalizer) > 1 for normalizer in normalizers):
        raise OptionError(
            f"{layer}: normalizers={normalizers!r} is not a tuple or list of different "
            f"normalizers; give at least one of {', '.join(map(repr, NORMALIZERS))}"
        )
    for normalizer in normalizers:
        check_choice(layer, "normalizers", normalizer, NORMALIZERS)


def check_momentum(layer: str, momentum: Any) -> float:
    if momentum is None:
        raise OptionError(
            f"{layer}: momentum=None is no number between 0 and 1; for an average over all "
            "batches, as BatchNorm's, call surgery.recalibrate"
        )
    return check_fraction(layer, "momentum", momentum)


def check_sync(layer: str, sync: Any) -> None:
    is_valid = isinstance(sync, bool)
    if distributed.is_available():
        is_valid |= isinstance(sync, distributed.ProcessGroup)
        # A process outside a new group gets a number in place of the group.
        is_valid |= sync == distributed.GroupMember.NON_GROUP_MEMBER
    if not is_valid:
        expected = "True, False or a group from torch.distributed.new_group"
        raise OptionError(f"{layer}: sync={sync!r} is no process group; set it to {expected}")


def weighted_sum(weights: Iterable[Tensor], values: Iterable[Tensor]) -> Tensor:
    # One by one: the order in which torch sums over a dimension depends on the batch's size.
    return reduce(add, (weight * value for weight, value in zip(weights, values, strict=True)))
