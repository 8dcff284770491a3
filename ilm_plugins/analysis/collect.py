"""Collect the ratios, or omega and beta, of a model's adaptive layers for each image.

For any ``nn.Module``, from Python::

    from ilm_plugins.analysis.collect import collect_ratios

    ratios = collect_ratios(model, batches)      # batches of images, (N, 3, H, W) each
    ratios["layer1.0.bn1"].values.mean(0)        # one for each of .normalizers

Layers are in the order in which the model calls them, and may be of several classes. SN has two
sets of ratios, the same for all images, under ``NAME.mean`` and ``NAME.var``.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..layers import ExemplarNorm, SwitchNorm
from ..layers.autoencoder import AutoencoderNorm
from ..surgery.common import Match, check_match, evaluating, matches


@dataclass(frozen=True)
class Ratios:
    """An EN, SN or SSN layer's ratios for each image: the weights with which it mixes normalizers.

    Attributes:
        normalizers: names of the K normalizers, of "IN", "LN", "BN" and "GN".
        values: (N, K), each row sums to 1; a row is NaN if nothing of the image reached the layer.
    """

    normalizers: tuple[str, ...]
    values: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over images (K), without the rows that are NaN."""
        return self.values.nanmean(0)

    @property
    def distance(self) -> float:
        """The distance from uniform ratios, the mean of abs(ratio - 1/K) over all ratios."""
        return (self.values - 1 / len(self.normalizers)).abs().nanmean().item()


@dataclass(frozen=True)
class Rescaling:
    """The scale omega and shift beta of an ILM layer or AssocNorm, minus its weight and bias.

    Attributes:
        omega: omega - weight, (N, key groups), the mean over the channels of each key group; a row
            is NaN if nothing of the image reached the layer.
        beta: beta - bias, in the same way.
    """

    omega: Tensor
    beta: Tensor


#: A function of a layer and its input (N, C, *); returns suffix of the name -> values (N, D).
Compute = Callable[[nn.Module, Tensor], Mapping[str, Tensor]]


def compute_ratios(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the ratios of an EN, SN or SSN layer for an input.

    Args:
        layer: an EN, SN or SSN layer.
        x: (N, C, *), its input.

    Returns:
        EN: "" -> (N, K). SN: ".mean" and ".var" -> (N, K) each, with N equal rows.
    """
    if isinstance(layer, ExemplarNorm):
        return {"": layer.ratios(x)}
    mean, var = layer.ratios().unsqueeze(1).expand(-1, len(x), -1)
    return {".mean": mean, ".var": var}


def compute_rescaling(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the terms that an ILM layer or AssocNorm adds to its weight and bias for an input.

    Args:
        layer: an ILM layer or AssocNorm.
        x: its input (N, C, *).

    Returns:
        "" -> (N, 2 * key groups): omega - weight, then beta - bias, averaged over each key group.
    """
    omega, beta = layer.rescaling(x)
    moved = torch.cat((omega - layer.weight, beta - layer.bias), 1)
    key_groups = layer.num_key_groups  # without an image, view could not infer the last size
    return {"": moved.view(len(x), 2 * key_groups, layer.num_channels // key_groups).mean(2)}


def collect_ratios(
    model: nn.Module,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any] | None = None,
    match: Match = None,
) -> dict[str, Ratios]:
    """Run a model on batches, and return the ratios of its EN, SN and SSN layers for each image.

    Args:
        model: runs in evaluation mode, so BN uses its running statistics; its mode is restored.
        batches: arguments of ``forward``; the length of each is its number of images.
        forward: runs the model on a batch; default: the model itself.
        match: names of layers, * for any characters; default: all.

    Returns:
        Name of the layer -> ratios, in the order of the first calls. Where a layer is called
        several times for an image, or gets several instances of it, as in a box head, its ratios
        are averaged over them.

    Raises:
        UserError: the model has no such layers, or nothing reached them; a ratio is infinite or
            NaN; or a layer gets another number of instances than images, which is possible only in
            batches of one image.
        OptionError: ``match`` matches no layer.
    """
    layers = select(model, (ExemplarNorm, SwitchNorm), "EN, SN or SSN", match)
    found = _gather(model, layers, compute_ratios, batches, forward or model)
    by_name = {name + part: layer for name, layer in layers.items() for part in PARTS}
    return {name: Ratios(by_name[name].normalizers, values) for name, values in found.items()}


#: Suffixes that :func:`compute_ratios` returns.
PARTS = ("", ".mean", ".var")


def collect_rescaling(
    model: nn.Module,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any] | None = None,
    match: Match = None,
) -> dict[str, Rescaling]:
    """Run a model on batches, and return omega and beta of its ILM layers and AssocNorms.

    It takes the same arguments as :func:`collect_ratios`, raises the same errors, and averages
    several instances of an image in the same way. The model's mode is restored.

    Returns:
        Name of the layer -> omega minus weight and beta minus bias for each image, in the order of
        the first calls.
    """
    layers = select(model, AutoencoderNorm, "ILM or AssocNorm", match)
    found = _gather(model, layers, compute_rescaling, batches, forward or model)
    return {name: Rescaling(*values.chunk(2, 1)) for name, values in found.items()}


def select(
    model: nn.Module,
    kinds: type | tuple[type, ...],
    words: str,
    match: Match = None,
    advice: str = "give a model that was trained with one",
) -> dict[str, nn.Module]:
    """Return name -> layer for the layers of some classes whose names match, in the model's order.

    Args:
        model: any module.
        kinds: the classes; layers of their subclasses are found, too.
        words: names of the classes, for the message.
        match: one or several full names of layers, * for any characters; default: all.
        advice: end of the UserError's message.

    Raises:
        UserError: the model has no layer of these classes.
        OptionError: ``match`` matches none of them.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not found:
        names = {type(m).__name__ for m in model.modules()}
        others = ", ".join(sorted(name for name in names if "Norm" in name)) or "none"
        raise UserError(f"the model has no {words} layer, its norms are {others}; {advice}")
    check_match(match, found)
    return {name: layer for name, layer in found.items() if matches(name, match)}


@contextmanager
def watching(
    layers: Mapping[str, nn.Module],
    see: Callable[[str, Mapping[str, Tensor]], None],
    compute: Compute,
) -> Iterator[None]:
    """Compute values from the input of each call of the layers within the block.

    This is done by forward hooks, which are removed at exit; the layers' outputs are unchanged.

    Args:
        layers: name -> layer.
        see: is called with the layer's name and the computed values, before the layer runs.
        compute: computes the values from the layer and its input, without gradients.
    """

    def hook(name: str, layer: nn.Module, inputs: tuple, named: dict) -> None:
        with torch.no_grad():
            see(name, compute(layer, *inputs, *named.values()))

    handles = [
        layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class MeansOfRatios:
    """Computes mean ratios of EN, SN and SSN layers in single training iterations, for logging.

    Between :meth:`start` and :meth:`stop` the ratios are summed on their device; only :meth:`stop`
    waits for it. Otherwise nothing is computed.

    Args:
        model: any module; its layers are listed once, here.

    Raises:
        UserError: the model has no such layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = select(
            model,
            (ExemplarNorm, SwitchNorm),
            "EN, SN or SSN",
            advice="there are no ratios to log; leave --ratios-interval, or the RatiosHook, out",
        )
        self._hooks = ExitStack()
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to sum the ratios of all calls of the layers."""
        self._sums, self._counts = {}, Counter()
        self._hooks.enter_context(watching(self.layers, self._see, compute_ratios))

    def _see(self, name: str, found: Mapping[str, Tensor]) -> None:
        """Add the ratios of one call, suffix -> (N, K), to the sums of a layer."""
        for part, values in found.items():
            total = values.float().sum(0)
            self._sums[name + part] = self._sums.get(name + part, 0) + total
            self._counts[name + part] += len(values)

    def stop(self) -> dict[str, float]:
        """Stop summing, remove the hooks, and return the mean ratios of calls since :meth:`start`.

        Returns:
            ``ratios/LAYER/NORMALIZER`` -> mean over instances, without layers that got none; for SN
            LAYER ends in ".mean" or ".var". Empty if :meth:`start` was not called since the last
            :meth:`stop`.
        """
        self._hooks.close()
        scalars = {}
        for name, total in self._sums.items():
            if self._counts[name]:
                layer = self.layers.get(name) or self.layers[name.rpartition(".")[0]]
                means = (total / self._counts[name]).tolist()
                pairs = zip(layer.normalizers, means, strict=True)
                scalars |= {f"ratios/{name}/{normalizer}": mean for normalizer, mean in pairs}
        self._sums = {}
        return scalars


@torch.no_grad()
def _gather(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    compute: Compute,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any],
) -> dict[str, Tensor]:
    """Run a model on all batches, and return the values computed from the layers' inputs.

    The model runs in evaluation mode without gradients; its mode is restored.

    Args:
        model: the model.
        layers: name -> layer, of layers in the model.
        compute: computes the values from a layer and its input.
        batches: arguments of ``forward``; the length of each is its number of images.
        forward: runs the model on a batch; its result is ignored.

    Returns:
        Name of the layer and suffix -> values of all images, (N, D), on the CPU; a row is NaN if
        nothing of the image reached the layer.

    Raises:
        UserError: nothing reached any of the layers, or a value is infinite or NaN; see also
            :func:`collect_ratios`.
    """
    calls: dict[str, list[Tensor]] = {}

    def see(name: str, found: Mapping[str, Tensor]) -> None:
        for part, values in found.items():
            if not values.isfinite().all():
                raise UserError(
                    f"{name} has infinite or NaN values; its parameters or its input have them, too"
                )
            calls.setdefault(name + part, []).append(values)

    gathered = []
    with evaluating(model), watching(layers, see, compute):
        for batch in batches:
            calls.clear()
            forward(batch)
            n = len(batch)
            gathered.append((n, {k: _by_image(k, v, n) for k, v in calls.items()}))
    widths = {
        name: values.shape[1]
        for _, found in gathered
        for name, values in found.items()
        if not values.isnan().all()
    }
    if not widths:
        raise UserError(
            f"none of the {len(layers)} layers got an input, such as {next(iter(layers))}; "
            "give at least one image, and layers that run in evaluation"
        )
    return {
        name: torch.cat(
            [found.get(name, torch.full((n, width), torch.nan)) for n, found in gathered]
        )
        for name, width in widths.items()
    }


def _by_image(name: str, calls: list[Tensor], images: int) -> Tensor:
    """Average the values of a layer's calls for each image.

    All instances of a batch of one image are that image's; without instances its row is NaN. Means
    are computed in float64, so that the mean of equal rows, as of SN's, is exactly this row.

    Args:
        name: the layer's name, for the message.
        calls: values of each call, (instances, D).
        images: number of images in the batch.

    Returns:
        (images, D), float32, on the CPU.

    Raises:
        UserError: the batch has several images, and a call has another number of instances.
    """
    if images == 1:
        return torch.cat(calls).cpu().double().mean(0, keepdim=True).float()
    if any(len(values) != images for values in calls):
        raise UserError(
            f"{name} got {len(calls[0])} instances for {images} images, which cannot be matched; "
            "use one image per batch (--batch-size 1)"
        )
    return torch.stack(calls).cpu().double().mean(0).float()
