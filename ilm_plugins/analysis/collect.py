"""What each adaptive layer of a model makes of each image.

For any ``nn.Module``, from Python::

    from ilm_plugins.analysis.collect import collect_ratios

    ratios = collect_ratios(model, batches)      # batches of images, (N, 3, H, W) each
    ratios["layer1.0.bn1"].values.mean(0)        # one for each of .normalizers

Layers come in the order in which the model calls them, and need not all be of one kind. SN's ratios
are two, the same for all images: they are found as ``NAME.mean`` and ``NAME.var``.
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
from ..surgery.common import Match, check_match, matches


@dataclass(frozen=True)
class Ratios:
    """A layer's ratios, image by image.

    Attributes:
        normalizers: K of "IN", "LN", "BN", "GN".
        values: (N, K), each row of sum 1; NaN for an image of which nothing reached the layer.
    """

    normalizers: tuple[str, ...]
    values: Tensor

    @property
    def mean(self) -> Tensor:
        """(K)"""
        return self.values.nanmean(0)

    @property
    def distance(self) -> float:
        """How far the ratios are from uniform: the mean of abs(lambda - 1/K)."""
        return (self.values - 1 / len(self.normalizers)).abs().nanmean().item()


@dataclass(frozen=True)
class Rescaling:
    """How far a layer's omega and beta are from B_omega and B_beta, image by image.

    Attributes:
        omega, beta: (N, key groups), the means over the channels of a key group, which in all forms
            but three of AssocNorm's are alike; NaN for an image of which nothing reached the layer.
    """

    omega: Tensor
    beta: Tensor


#: A layer and its input, (N, C, *) -> by a suffix of the layer's name, (N, D) each.
Reading = Callable[[nn.Module, Tensor], Mapping[str, Tensor]]


def read_ratios(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """EN's ratios, (N, K); or SN's of means and of variances, (N, K) each."""
    if isinstance(layer, ExemplarNorm):
        return {"": layer.ratios(x)}
    mean, var = layer.ratios().unsqueeze(1).expand(-1, len(x), -1)
    return {".mean": mean, ".var": var}


def read_rescaling(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """ILM's omega - B_omega and beta - B_beta, (N, 2 * key groups)."""
    omega, beta = layer.rescaling(x)
    moved = torch.cat((omega - layer.weight, beta - layer.bias), 1)
    return {"": moved.view(len(x), 2 * layer.num_key_groups, -1).mean(2)}


def collect_ratios(
    model: nn.Module,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any] | None = None,
    match: Match = None,
) -> dict[str, Ratios]:
    """The ratios of a model's EN and SN layers.

    Args:
        model: is in evaluation meanwhile: BN's statistics are the running ones.
        batches: what ``forward`` takes; the length of each is its number of images.
        forward: runs the model on a batch; the model itself by default.
        match: names of layers, * for any characters; all by default.

    Returns:
        Layers by name, in the order in which they were first called. One that is called several
        times an image, or has several instances of it, as a box head has, has their mean.

    Raises:
        UserError: the model has no such layers, or none that got anything; or instances cannot
            be told apart by image, for which a batch must hold one.
        OptionError: ``match`` fits none.
    """
    layers = select(model, (ExemplarNorm, SwitchNorm), "EN or SN", match)
    found = _gather(model, layers, read_ratios, batches, forward or model)
    by_name = {name + part: layer for name, layer in layers.items() for part in PARTS}
    return {name: Ratios(by_name[name].normalizers, values) for name, values in found.items()}


#: Suffixes of :func:`read_ratios`.
PARTS = ("", ".mean", ".var")


def collect_rescaling(
    model: nn.Module,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any] | None = None,
    match: Match = None,
) -> dict[str, Rescaling]:
    """What the ILM layers and AssocNorms of a model do; see :func:`collect_ratios`."""
    layers = select(model, AutoencoderNorm, "ILM or AssocNorm", match)
    found = _gather(model, layers, read_rescaling, batches, forward or model)
    return {name: Rescaling(*values.chunk(2, 1)) for name, values in found.items()}


def select(
    model: nn.Module,
    kinds: type | tuple[type, ...],
    words: str,
    match: Match = None,
    advice: str = "give a model that was trained with one",
) -> dict[str, nn.Module]:
    """The layers of a model that are of some kinds, and whose names fit.

    Raises:
        UserError: it has none of these kinds.
        OptionError: none fits.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not found:
        others = sorted({type(m).__name__ for m in model.modules() if _is_norm(m)})
        raise UserError(
            f"the model has no {words} layer, its norms are {', '.join(others) or 'none'}; {advice}"
        )
    check_match(match, found)
    return {name: layer for name, layer in found.items() if matches(name, match)}


def _is_norm(module: nn.Module) -> bool:
    kinds = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm
    return isinstance(module, kinds) or "BatchNorm" in type(module).__name__


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation, and each of its modules in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def watching(
    layers: Mapping[str, nn.Module], see: Callable[[str, Mapping[str, Tensor]], None], read: Reading
) -> Iterator[None]:
    """Have ``see`` get each layer's name and reading whenever the layer is called."""

    def hook(name: str, layer: nn.Module, inputs: tuple) -> None:
        with torch.no_grad():
            see(name, read(layer, inputs[0]))

    handles = [
        layer.register_forward_pre_hook(partial(hook, name)) for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class MeansOfRatios:
    """The mean ratios of EN and SN layers in single passes of a training, as scalars.

    Between :meth:`start` and :meth:`stop` the ratios are summed on their device, which nothing
    waits for but :meth:`stop`; otherwise nothing is computed.

    Raises:
        UserError: the model has no such layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = select(
            model,
            (ExemplarNorm, SwitchNorm),
            "EN or SN",
            advice="there are no ratios to log; leave --ratios-interval, or the RatiosHook, out",
        )
        self._hooks = ExitStack()
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        self._sums, self._counts = {}, Counter()
        self._hooks.enter_context(watching(self.layers, self._see, read_ratios))

    def _see(self, name: str, found: Mapping[str, Tensor]) -> None:
        for part, values in found.items():
            total = values.float().sum(0)
            self._sums[name + part] = self._sums.get(name + part, 0) + total
            self._counts[name + part] += len(values)

    def stop(self) -> dict[str, float]:
        """``ratios/LAYER/NORMALIZER`` -> mean over all instances since the start; or nothing."""
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
    read: Reading,
    batches: Iterable[Sized],
    forward: Callable[[Any], Any],
) -> dict[str, Tensor]:
    """Names of layers -> readings, (N, D) on the CPU, of all images."""
    calls: dict[str, list[Tensor]] = {}

    def see(name: str, found: Mapping[str, Tensor]) -> None:
        for part, values in found.items():
            calls.setdefault(name + part, []).append(values)

    gathered = []
    with evaluating(model), watching(layers, see, read):
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
            f"none of the {len(layers)} layers got anything, such as {next(iter(layers))}; "
            "give at least one image, and layers that evaluation runs"
        )
    return {
        name: torch.cat(
            [found.get(name, torch.full((n, width), torch.nan)) for n, found in gathered]
        )
        for name, width in widths.items()
    }


def _by_image(name: str, calls: list[Tensor], images: int) -> Tensor:
    """(instances, D) of each call -> (images, D)."""
    if images == 1:
        return torch.cat(calls).mean(0, keepdim=True).float().cpu()
    if any(len(values) != images for values in calls):
        raise UserError(
            f"{name} got {len(calls[0])} instances of {images} images, which cannot be told apart; "
            "give one image a batch (--batch-size 1)"
        )
    return torch.stack(calls).mean(0).float().cpu()
