"""Measure the running statistics of the mixtures (EN, SN, SSN) again."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import OptionError
from ..layers.mixture import MixtureNorm
from .evaluating import evaluating
from .report import Report


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> Report:
    """Compute the running statistics of the mixtures (EN, SN, SSN) from some batches, in place.

    As by "precise BN" for BatchNorm, the statistics become the average of the batches' means and
    unbiased variances, under weights that stay. Meanwhile the mixtures normalize by the batch's
    statistics, so batches should be as large as in training; all other modules are in evaluation
    mode, and nothing runs compiled. Running statistics of 16 bits round each average: convert a
    model to bfloat16 afterwards. A layer that is called several times for a batch averages over
    all calls. If layers have ``sync``, every process must pass the same number of batches.

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
    """
    layers = {
        layer: name
        for name, layer in model.named_modules()
        if isinstance(layer, MixtureNorm) and layer.tracks_statistics
    }
    if not layers:
        raise OptionError("recalibrate: the model has no layer that mixes BN's running statistics")
    momenta = {layer: layer.momentum for layer in layers}
    earlier = {layer: [t.clone() for t in _changed_by_forward(layer)] for layer in layers}
    skipped = dict.fromkeys(layers, "no batch reached it")
    calls: Counter[MixtureNorm] = Counter()

    def weigh(layer: MixtureNorm, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Let the statistics of the k-th call count for 1/k."""
        x = inputs[0] if inputs else named["x"]
        if not layer.uses_batch_statistics:  # the model's forward has set it to evaluation mode
            skipped[layer] = "it ran in evaluation mode"
        # A single value of a channel updates nothing, unless other processes have more.
        elif x.numel() > layer.num_channels or layer.synchronizes:
            if not calls[layer]:  # NaN times the weight 0 is NaN
                for name in ("running_mean", "running_variance"):
                    getattr(layer, name).zero_()
            calls[layer] += 1
            layer.momentum = 1 / calls[layer]
        else:
            skipped[layer] = "no batch gave it two values"

    trained = [layer for layer in layers if not layer.frozen]
    hooks = [layer.register_forward_pre_hook(weigh, with_kwargs=True) for layer in trained]
    run, count = forward or model, 0
    try:
        with evaluating(model):
            for layer in layers:
                layer.train()
            for batch in batches:
                run(batch)
                count += 1
    except BaseException:
        for layer, statistics in earlier.items():
            _restore(layer, statistics)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum
    if count == 0:
        raise OptionError("recalibrate: got no batches; give at least one")
    report = Report()
    for layer, name in layers.items():
        if not calls[layer]:  # its ``forward`` may have been called without the hooks
            _restore(layer, earlier[layer])
        if layer.frozen:
            report.left[name] = "frozen"
        elif not calls[layer]:
            report.left[name] = skipped[layer]
        elif not all(tensor.isfinite().all() for tensor in _changed_by_forward(layer)):
            _restore(layer, earlier[layer])
            report.left[name] = "a batch gave it infinite or NaN values"
        else:
            # A layer that runs several times a batch has more calls than batches.
            report.converted[name] = f"running statistics of {min(count, calls[layer])} batches"
    return report


def _changed_by_forward(layer: MixtureNorm) -> list[Tensor]:
    """Return the running mean and variance, and EN's number of batches."""
    tracked = getattr(layer, "num_batches_tracked", None)
    return [t for t in (layer.running_mean, layer.running_variance, tracked) if t is not None]


def _restore(layer: MixtureNorm, copies: list[Tensor]) -> None:
    for tensor, copy in zip(_changed_by_forward(layer), copies, strict=True):
        tensor.copy_(copy)
