"""Collect the ratios, or omega and beta, of any model's adaptive layers for each image.

Layers are in the order in which the model calls them, and may be of several classes. SN has two
sets of ratios, the same for all images, under ``NAME.mean`` and ``NAME.var``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilm_plugins.errors import UserError
from ilm_plugins.layers import AutoencoderNorm, ExemplarNorm, MixtureNorm
from ilm_plugins.surgery import check_match, evaluating, matches, watching

#: Names to select, as one or several patterns in which * is any text; None selects all.
Match = str | Sequence[str] | None


@dataclass(frozen=True)
class Ratios:
    """The weights with which an EN, SN or SSN layer mixes its K normalizers, for each image.

    Attributes:
        normalizers: names of the K normalizers, of "IN", "LN", "BN" and "GN".
        values: (N, K), each row sums to 1; a row is NaN if nothing of the image reached the layer.
        scales: (K), the mean absolute ``weight`` of each normalizer; equal where they share one.
    """

    normalizers: tuple[str, ...]
    values: Tensor
    scales: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean over images (K), without the rows that are NaN."""
        return self.values.nanmean(0)

    @property
    def shares(self) -> Tensor:
        """Each normalizer's share (K) of the layer's scale: mean ratio times scale, over the sum.

        Shares sum to 1. An EN that was converted from BN has ratios of 1/3 and shares 0, 0 and 1.
        """
        parts = self.mean * self.scales
        return parts / parts.sum()


@dataclass(frozen=True)
class Rescaling:
    """The scale omega and shift beta of an ILM layer or AssocNorm, minus its weight and bias.

    Attributes:
        omega, beta: omega - weight and beta - bias, (N, key groups), means over the channels of
            each key group; a row is NaN if nothing of the image reached the layer.
    """

    omega: Tensor
    beta: Tensor


def _ratios(layer: MixtureNorm, x: Tensor) -> dict[str, Tensor]:
    """Return the ratios of a layer for its input: {"": (N, K)}, of SN .mean and .var (N, K)."""
    if isinstance(layer, ExemplarNorm):
        return {"": layer.ratios(x)}
    mean, var = layer.ratios().unsqueeze(1).expand(-1, len(x), -1)
    return {".mean": mean, ".var": var}


def _rescaling(layer: AutoencoderNorm, x: Tensor) -> dict[str, Tensor]:
    """Return omega - weight, then beta - bias, (N, 2 * key groups), averaged over each group."""
    omega, beta = layer.rescaling(x)
    differences = torch.cat((omega - layer.weight, beta - layer.bias), 1)
    return {"": differences.unflatten(1, (2 * layer.num_key_groups, -1)).mean(2)}


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
    layers = select(model, MixtureNorm, "EN, SN or SSN", match)
    ratios = {}
    for name, values in _gather(model, layers, _ratios, batches, forward or model).items():
        layer = layers.get(name) or layers[name.rpartition(".")[0]]  # of NAME.mean and NAME.var
        scales = layer.weight.detach().abs().view(-1, layer.num_channels).mean(1).float().cpu()
        ratios[name] = Ratios(layer.normalizers, values, scales.expand(len(layer.normalizers)))
    return ratios


def collect_rescaling(
    model: nn.Module,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any] | None = None,
    match: Match = None,
) -> dict[str, Rescaling]:
    """Run a model on batches, and return omega and beta of its ILM layers and AssocNorms.

    See :func:`collect_ratios` for arguments, errors and averages over instances.
    """
    layers = select(model, AutoencoderNorm, "ILM or AssocNorm", match)
    gathered = _gather(model, layers, _rescaling, batches, forward or model)
    return {name: Rescaling(*values.chunk(2, 1)) for name, values in gathered.items()}


def select(model: nn.Module, kind: type, title: str, match: Match = None) -> dict[str, nn.Module]:
    """Return name -> layer of a class, in the model's order; errors call the class ``title``."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kind)}
    if not layers:
        names = {type(m).__name__ for m in model.modules()}
        others = ", ".join(sorted(name for name in names if "Norm" in name)) or "none"
        raise UserError(f"the model has no {title} layer, its norms are {others}; give one with it")
    check_match(match, layers)
    return {name: layer for name, layer in layers.items() if matches(name, match)}


def _gather(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    compute: Callable[[Any, Tensor], Mapping[str, Tensor]],
    batches: Iterable[Sized],
    forward: Callable[[Any], Any],
) -> dict[str, Tensor]:
    """Return the values (N, D) computed from the layers' inputs, by name and suffix, on the CPU."""
    calls: dict[str, list[Tensor]] = defaultdict(list)
    gathered: list[tuple[int, dict[str, Tensor]]] = []
    widths: dict[str, int] = {}

    def see(name: str, x: Tensor) -> None:
        if not len(x):
            return
        for part, values in compute(layers[name], x).items():
            if not values.isfinite().all():
                raise UserError(
                    f"{name} has infinite or NaN values; its parameters or its input have them, too"
                )
            calls[name + part].append(values)
            widths.setdefault(name + part, values.shape[1])

    with evaluating(model), watching(layers, see), torch.no_grad():
        for batch in batches:
            calls.clear()
            forward(batch)
            n = len(batch)
            means = {name: _by_image(name, values, n) for name, values in calls.items()}
            gathered.append((n, means))
    if not widths:
        raise UserError(
            f"none of the {len(layers)} layers got an input, such as {next(iter(layers))}; "
            "give at least one image, and layers that run in evaluation"
        )
    return {
        name: torch.cat(
            [means.get(name, torch.full((n, width), torch.nan)) for n, means in gathered]
        )
        for name, width in widths.items()
    }


def _by_image(name: str, calls: list[Tensor], images: int) -> Tensor:
    """Return the means of a layer's calls for each image: (images, D), float32, on the CPU."""
    if images == 1:  # all instances are of this image
        calls = list(torch.cat(calls).unsqueeze(1))
    if any(len(values) != images for values in calls):
        raise UserError(
            f"{name} got {len(calls[0])} instances for {images} images, which cannot be matched; "
            "use one image per batch (--batch-size 1)"
        )
    # In float64, so that the mean of equal rows, such as SN's, is exactly this row.
    return torch.stack(calls).cpu().double().mean(0).float()
