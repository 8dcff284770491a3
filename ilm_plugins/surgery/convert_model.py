"""Convert the norms of a model: find them, and put new ones in their places."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

from ..foreign_norms import FRAMEWORKS
from ..layers import OptionError
from ..layers.activated import NormWithActivation
from ..layers.base import AdaptiveNorm
from ..layers.options import check_choice
from . import norms
from .adapt_tensors import first_computable
from .checks import Surroundings
from .conversion import check_absent, check_replaces, conversion_to
from .convert_norm import layer_for, plain_for
from .fusing import fuse, unfuse
from .losses import LOSSES
from .report import Report, warn_of_nothing
from .rules import Refused
from .selection import Match, check_match, matches, report_of_match


def convert(
    model: nn.Module,
    to: str,
    *,
    match: Match = None,
    types: type | Iterable[type] | None = None,
    replacing: str | None = None,
    fuse_activations: bool = False,
    **options,
) -> tuple[nn.Module, Report]:
    """Replace a model's norms, in place; the report says where a layer changes the outputs.

    With ``replacing``, and from BatchNorm to SN or SSN, outputs change: weights are kept, and the
    model must be trained further. The layers keep weights, statistics, eps, number of groups,
    dtype, device, training mode and ``requires_grad``. timm's norms with an activation become a
    Sequential of layer and activation, of which the layer computes both where it can. A norm stays,
    with the reason in the report, if the layer cannot replace it exactly, if it shares a parameter
    with another module, or if an attribute other than a submodule, or its container, refers to it.
    Hooks stay with the replaced module, which the report says. Build the optimizer, compile the
    model, and wrap it for several processes, afterwards. After an error, the model is as it was.

    Args:
        model: any module; on the meta device, layers have no values.
        to: a key of :data:`ilm_plugins.NORMS`. "ILMLN" replaces GroupNorm of one group, "SSN" also
            SN.
        match: names of the norms to replace, with * for any characters, dots too; default: all.
        types: an exact class to replace, or several, instead of the plain norms of torch and the
            frameworks; each must derive from such a norm and compute the same.
        replacing: "BN" to replace BatchNorm by an ILM layer, AssocNorm or AN, or "LN" to replace
            the LayerNorms of maps of timm, torchvision and detectron2 by an ILM layer or AssocNorm,
            with weight, bias and eps; groups and key groups are "auto" by default.
        fuse_activations: True to have the new layers apply the activations that follow them, see
            :func:`fuse_activations`; the report's notes say which do, and why others do not.
        options: of the layer, such as ``hidden=3``.

    Returns:
        The model, or the new layer if the model itself is a norm; and a report on each norm, and
        on each module that is named like a norm.

    Raises:
        OptionError: an argument is unknown, or the layer takes this option from each norm; or
            ``match`` fits no norm of a model that has norms.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))
        >>> model, report = convert(model, "EN")
        >>> print(report)
        converted, BatchNorm2d -> ExemplarNorm (1): 1
    """
    asked = conversion_to(to, replacing, options)
    check_absent(asked.options, *asked.of_norm)
    if types is not None:
        types = frozenset([types] if isinstance(types, type) else types)

    def build(old: nn.Module, like: dict) -> nn.Module:
        check_replaces(asked, old, types)
        return layer_for(old, like, asked)

    model, report = _replace(model, match, norms.may_be_norm, build)
    warn_of_nothing(report)
    if fuse_activations:
        _fuse_converted(model, report)
    return model, report


def revert(model: nn.Module, *, match: Match = None, dims: int = 2) -> tuple[nn.Module, Report]:
    """Replace a model's layers from this package, in place, where a plain norm computes the same.

    A layer that computes anything else than a plain norm stays, with the reason in the report. A
    norm that had no weight or bias has none again, while these are 1 and 0. timm's norms, and
    MMEngine's BatchNorm of any dimensions, get the classes and names of their framework. First, all
    activations that :func:`fuse_activations` has fused are put back, also of layers that stay. If
    an error is raised, the model computes the same as before.

    Args:
        model, match: see :func:`convert`.
        dims: spatial dimensions, 1 to 3, of a BatchNorm or InstanceNorm if its layer replaced none.

    Returns:
        The model, or the new norm if the model itself is a layer; and a report on each layer.

    Raises:
        OptionError: ``dims`` is invalid, or ``match`` fits no layer.

    Example:
        >>> model, _ = convert(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)), "EN")
        >>> print(revert(model)[1])
        converted, ExemplarNorm -> BatchNorm2d (1): 1
    """
    check_choice("revert", "dims", dims, (1, 2, 3))
    named = model.named_modules(remove_duplicate=False)
    check_match(match, (name for name, module in named if _is_layer(module)))
    unfuse(model)
    model, report = _replace(model, match, _is_layer, partial(plain_for, dims=dims))
    warn_of_nothing(report)
    return model, report


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, AdaptiveNorm)


def _fuse_converted(model: nn.Module, report: Report) -> None:
    """Fuse the activations of the layers that a report names as converted; note which."""
    inside = ((name, model.get_submodule(name).modules()) for name in report.converted)
    layers = {m: name for name, modules in inside for m in modules if isinstance(m, AdaptiveNorm)}
    left = fuse(model, layers)
    for layer, name in layers.items():
        joined = bool(layer.fused_activation)
        report.note("applies its activation" if joined else f"no fusing: {left[layer]}", name)


def _replace(
    model: nn.Module,
    match: Match,
    among: Callable[[nn.Module], bool],
    build: Callable[[nn.Module, dict], nn.Module],
) -> tuple[nn.Module, Report]:
    """Replace the selected norms by ``build(norm, factory options)``; see :func:`convert`."""
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if among(module):
            names[module].append(name)
    report = report_of_match(match, itertools.chain(*names.values()))
    surroundings, places = Surroundings(model), []
    for old, old_names in names.items():
        if not any(matches(name, match) for name in old_names):
            continue
        try:
            surroundings.check(old, old_names)
            new = build(old, _factory_options(model, old_names[0]))
        except (Refused, OptionError) as error:
            report.left |= dict.fromkeys(old_names, str(error))
            continue
        places += _places(model, old_names, new)
        layer = new[0] if isinstance(new, NormWithActivation) else new
        classes = f"{type(old).__name__} -> {type(layer).__name__}"
        report.converted |= dict.fromkeys(old_names, classes)
        for loss in LOSSES:
            report.note(loss(old, layer), old_names[0])
    # All are built, and their parents found, before the first is replaced: an error leaves the
    # model as it was, and a norm inside the activation of another one gets another name.
    for around, attribute, new in places:
        if attribute:
            setattr(around, attribute, new)
        else:
            model = new
    for framework in FRAMEWORKS.values():
        framework.finish(model)
    return model, report


def _places(
    model: nn.Module, names: list[str], new: nn.Module
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return the parents and attributes of a norm of these names, each with its new module.

    A norm that had its activation inside gets it back, in place of a Sequential of both.
    """
    parents = {model.get_submodule(name.rpartition(".")[0]) for name in names if name}
    first, *others = parents or [None]
    if isinstance(first, NormWithActivation) and not others:
        for framework in FRAMEWORKS.values():
            if joined := framework.join_activation(new, [*first][1:]):
                names, new = [name.rpartition(".")[0] for name in names], joined
                break
    paths = [name.rpartition(".") for name in names]
    return [(model.get_submodule(above), attribute, new) for above, _, attribute in paths]


def _factory_options(model: nn.Module, name: str) -> dict:
    """Return device and dtype of the first floating tensor of a norm, or of what is around it."""
    around = model.get_submodule(name)
    like = first_computable(itertools.chain(around.parameters(), around.buffers()))
    if like is not None:
        return {"device": like.device, "dtype": like.dtype}
    return _factory_options(model, name.rpartition(".")[0]) if name else {}
