"""Measure the running statistics of the mixtures (EN, SN, SSN) again."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import OptionError
from ..layers.mixture import MixtureNorm
from .evaluating import evaluating, watching
from .report import Report


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> Report:
    """Compute the running statistics of the mixtures (EN, SN, SSN) from some batches, in place.

    As by "precise BN" for BatchNorm, the statistics become the average of the batches' means and
    unbiased variances over all calls of a layer. Meanwhile the mixtures normalize by the batch's
    statistics, so batches should be as large as in training; all other modules are in evaluation
    mode, and nothing runs compiled. Convert a model to bfloat16 afterwards: 16 bits round each
    average. If layers have ``sync``, every process must pass the same number of batches.

    Args:
        model: any module, not wrapped for several processes.
        batches: at least one.
        forward: runs the model on a batch; default: ``model`` itself, which then gets the whole
            batch, such as detectron2's list of dicts. For a loader of images and labels:
            ``lambda batch: model(batch[0])``.

    Returns:
        A report: ``converted`` has the layers with new statistics, ``left`` layers that keep the
        old ones, because they are frozen, did not run, ran in evaluation mode, got fewer than two
        values of a channel, or got infinite or NaN values.

    Raises:
        OptionError: no layer has running statistics, or there are no batches. After any error, all
            statistics are as before.

    Example:
        >>> model, _ = convert(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)), "SN")
        >>> print(recalibrate(model, (torch.randn(4, 3, 8, 8) for _ in range(32))))
        converted, running statistics of 32 batches (1): 1
    """
    measurements = {
        name: _Measurement(layer)
        for name, layer in model.named_modules()
        if isinstance(layer, MixtureNorm) and layer.tracks_statistics
    }
    if not measurements:
        raise OptionError("recalibrate: the model has no layer that mixes BN's running statistics")
    layers = {name: measurement.layer for name, measurement in measurements.items()}
    trained = {name: layer for name, layer in layers.items() if not layer.frozen}
    count = 0
    try:
        with evaluating(model), watching(trained, lambda name, x: measurements[name].weigh(x)):
            for layer in layers.values():
                layer.train()
            for batch in batches:
                (forward or model)(batch)
                count += 1
    except BaseException:
        for measurement in measurements.values():
            measurement.restore()
        raise
    finally:
        for measurement in measurements.values():
            measurement.layer.momentum = measurement.momentum
    if count == 0:
        raise OptionError("recalibrate: got no batches; give at least one")
    report = Report()
    for name, measurement in measurements.items():
        if problem := measurement.problem():
            measurement.restore()
            report.left[name] = problem
        else:
            # A layer that runs several times a batch has more calls than batches.
            calls = min(count, measurement.calls)
            report.converted[name] = f"running statistics of {calls} batches"
    return report


class _Measurement:
    """A layer whose running statistics are measured, with what it had before."""

    def __init__(self, layer: MixtureNorm) -> None:
        self.layer, self.momentum = layer, layer.momentum
        self.earlier = [tensor.clone() for tensor in self._statistics()]
        self.calls = 0
        self.skipped = "frozen" if layer.frozen else "no batch reached it"

    def weigh(self, x: Tensor) -> None:
        """Let the statistics of the k-th call count for 1/k; x is its input."""
        layer = self.layer
        if not layer.uses_batch_statistics:  # the model's forward has set it to evaluation mode
            self.skipped = "it ran in evaluation mode"
        # A single value of a channel updates nothing, unless other processes have more.
        elif x.numel() <= layer.num_channels and not layer.synchronizes:
            self.skipped = "no batch gave it two values"
        else:
            if not self.calls:  # NaN times the weight 0 is NaN
                for tensor in self._statistics():
                    tensor.zero_()
            self.calls += 1
            layer.momentum = 1 / self.calls

    def problem(self) -> str | None:
        """Return why the layer keeps its earlier statistics; None if it has new ones."""
        if not self.calls:  # its ``forward`` may have been called without the hooks
            return self.skipped
        if not all(tensor.isfinite().all() for tensor in self._statistics()):
            return "a batch gave it infinite or NaN values"
        return None

    def restore(self) -> None:
        for tensor, copy in zip(self._statistics(), self.earlier, strict=True):
            tensor.copy_(copy)

    def _statistics(self) -> list[Tensor]:
        """Return the running mean and variance, and EN's number of batches."""
        tracked = getattr(self.layer, "num_batches_tracked", None)
        statistics = self.layer.running_mean, self.layer.running_variance, tracked
        return [tensor for tensor in statistics if tensor is not None]
