"""Convert the norms of a model."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..foreign_norms import FRAMEWORKS, path_of
from ..layers import ILMInstanceNorm, OptionError, SwitchNorm, freeze
from ..layers.activated import NormWithActivation
from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm
from ..layers.mixture import MixtureNorm
from ..layers.options import check_choice
from ..ops import Switch
from . import norms
from .checks import (
    TENSORS,
    check_not_held,
    check_not_read,
    check_plain_modules,
    holders_of,
    modules_of,
    modules_of_shared_heads,
    reason_of_levels,
)
from .common import (
    Match,
    Report,
    Swap,
    check_absent,
    check_match,
    matches,
    report_of_match,
    source_norm,
    warn_of_nothing,
)
from .fusing import fuse, unfuse, with_activation
from .norms import modules_after
from .rules import (
    AFFINE,
    LAYOUTS,
    NotConvertible,
    State,
    adapt,
    check_complete,
    chosen_by,
    find_rule,
    hint,
    is_identity,
    plain_norm_of,
    refuse,
    remark,
    remark_on_values,
)
from .sources import exact_source_of, num_channels, source_of

_COMPILED = "torch.compile holds the norm itself: convert the model before you compile it"
_NOT_TRACKED = (
    "track_running_stats=False: momentum=0 keeps the running statistics as they are; set momentum "
    "to update them"
)
_UNSYNCHRONIZED = (
    "no longer synchronized: nn.SyncBatchNorm.convert_sync_batchnorm makes it use the batches of "
    "all processes again"
)
#: The eps of layers that replace BatchNorms of eps=0, as in torchvision's detectors.
_EPS = 1e-5
_NEEDS_EPS = (
    f"eps=0, and the layer needs more: set the norm's eps to {_EPS:g}, which changes outputs"
)
_INFINITE = "its running variance has zeros, and its eps is 0: outputs are infinite"


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
    with the reason in the report, if the layer cannot replace it exactly, or if it shares a
    parameter with another module. Hooks stay with the replaced module, which the report says. Build
    the optimizer, compile the model, and wrap it for several processes, afterwards. If an error is
    raised, the model is as it was.

    A norm also stays if an attribute other than a submodule refers to it: to the norm itself, a
    bound method or a partial function of it, also in lists, tuples, sets and dicts.

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
    """
    swap = source_norm(to, replacing, options)
    check_absent(swap.options, *swap.of_norm)
    if types is not None:
        types = frozenset([types] if isinstance(types, type) else types)

    def build(old: nn.Module, like: dict) -> nn.Module:
        _check_replaceable(old, swap, types)
        return _layer_for(old, like, swap)

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
        dims: number of spatial dimensions, 1 to 3, of new InstanceNorms and BatchNorms.

    Returns:
        The model, or the new norm if the model itself is a layer; and a report on each layer.

    Raises:
        OptionError: ``dims`` is invalid, or ``match`` fits no layer.
    """
    check_choice("revert", "dims", dims, (1, 2, 3))
    check_match(match, (name for name, _ in norms.named_norms(model, _is_layer)))
    unfuse(model)
    model, report = _replace(model, match, _is_layer, partial(_plain_for, dims=dims))
    warn_of_nothing(report)
    return model, report


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, AdaptiveNorm)


def _fuse_converted(model: nn.Module, report: Report) -> None:
    """Fuse the activations of the layers that a report names as converted; note which."""
    inside = ((name, model.get_submodule(name).modules()) for name in report.converted)
    layers = {m: name for name, modules in inside for m in modules if isinstance(m, AdaptiveNorm)}
    _, left = fuse(model, layers)
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
    names, swaps = defaultdict(list), []
    made: dict[str, nn.Module] = {}
    for name, module in norms.named_norms(model, among):
        names[module].append(name)
    report = report_of_match(match, itertools.chain(*names.values()))
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    holders, shared = holders_of(model), modules_of_shared_heads(model)
    for old, old_names in names.items():
        if not any(matches(name, match) for name in old_names):
            continue
        try:
            check_plain_modules(old)
            is_compiled = any(name.rpartition(".")[2] == "_orig_mod" for name in old_names)
            refuse(is_compiled, _COMPILED)
            check_not_held(old, holders)
            for name in old_names:
                above, _, attribute = name.rpartition(".")
                check_not_read(model.get_submodule(above), attribute)
            like = _factory_options(model, old_names[0])
            is_shared = old in shared and norms.kind_of_module(old) == "BN"
            refuse(is_shared, reason_of_levels())
            new = build(old, like)
            _check_untied(old, owners)
        except (NotConvertible, OptionError) as error:
            report.left |= dict.fromkeys(old_names, str(error))
            continue
        layer = new[0] if isinstance(new, NormWithActivation) else new
        new_swaps = _swaps(model, old_names, new)
        swaps += new_swaps
        made |= dict.fromkeys(old_names, new_swaps[0][2])
        classes = f"{type(old).__name__} -> {type(layer).__name__}"
        report.converted |= dict.fromkeys(old_names, classes)
        for loss in _losses(old, layer):
            report.note(loss, old_names[0])
    # All are built, and their parents found, before the first is swapped: an error leaves the model
    # as it was, and a norm may be inside the activation of another one, which gets another name.
    for around, attribute, new in swaps:
        if attribute:
            setattr(around, attribute, new)
        else:
            model = new
    present = {*model.modules()}
    for old, old_names in names.items():
        for name in old_names:
            is_reported = name in report.converted or name in report.left
            if is_reported and made.get(name, old) not in present:
                report.converted.pop(name, None)
                report.left[name] = "it was inside a norm that is replaced, and is removed"
    for framework in FRAMEWORKS.values():
        framework.finish(model)
    return model, report


def _swaps(
    model: nn.Module, names: list[str], new: nn.Module
) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return parents, attributes and their new modules, so that a norm of these names is replaced.

    A norm that had its activation inside gets it back, in place of a Sequential of both.
    """
    around = {name: model.get_submodule(name.rpartition(".")[0]) for name in names if name}
    first, *others = {*around.values()} or [None]
    if isinstance(first, NormWithActivation) and not others:
        for framework in FRAMEWORKS.values():
            if joined := framework.join_activation(new, [*first][1:]):
                names, new = [name.rpartition(".")[0] for name in names], joined
                break
    paths = [name.rpartition(".") for name in names]
    return [(model.get_submodule(above), attribute, new) for above, _, attribute in paths]


def _check_untied(old: nn.Module, owners: Counter) -> None:
    """Raise NotConvertible if a parameter of a norm also belongs to a module outside it."""
    inside = Counter(p for module in old.modules() for p in module.parameters(recurse=False))
    for name, p in old.named_parameters():
        refuse(owners[p] > inside[p], f"it shares its {name} with another module")


def _factory_options(model: nn.Module, name: str) -> dict:
    """Return device and dtype of the first floating tensor of a norm, or of what is around it."""
    around = model.get_submodule(name)
    for tensor in itertools.chain(around.parameters(), around.buffers()):
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:  # not float8
            return {"device": tensor.device, "dtype": tensor.dtype}
    return _factory_options(model, name.rpartition(".")[0]) if name else {}


def _check_replaceable(module: nn.Module, swap: Swap, types: frozenset[type] | None) -> None:
    """Raise NotConvertible unless a module is exactly a plain norm, or a layer with a rule."""
    cls, layer, source = type(module), swap.layer, swap.source
    is_layer = isinstance(module, AdaptiveNorm)
    if is_layer and (types is None or cls in types):
        with suppress(NotConvertible):
            find_rule(norms.kind_of_module(module), layer)
            return
    name, old_source = cls.__name__, source_of(cls)
    is_lazy = isinstance(module, LazyModuleMixin)
    refuse(is_lazy, f"{name} has no number of channels yet; run the model once, then convert it")
    refuse(is_layer, f"is {name}, already a layer of this package")
    reason = old_source.refusal(module, layer) if old_source else None
    advice = f"; {reason}" if reason else hint(old_source, layer)
    refuse(old_source is not source, f"{name}, but {swap.key} replaces {source.title}{advice}")
    refuse(types is not None and cls not in types, f"{name}, which is not among types")
    refuse(
        not types and exact_source_of(cls) is None,
        f"{name} derives from {source.title} and may compute something else; if it does not, name "
        "it in types",
    )
    if reason:
        raise NotConvertible(reason)


def _losses(old: nn.Module, new: nn.Module) -> Iterator[str]:
    """Yield remarks on what a norm has, and the norm that replaces it lacks."""
    if changes := remark(norms.kind_of_module(old), new):
        yield changes
    back_to = norms.target_of(type(new))
    if back_to == "BN" and getattr(old, "frozen", False):
        yield "no longer frozen: training uses batch statistics and updates the running ones"
    if back_to == "BN" and getattr(old, "sync", False):
        yield _UNSYNCHRONIZED
    if getattr(old, "eps", None) == 0:
        yield f"eps=0 becomes {_EPS:g}, and the weight is scaled to match"
    if isinstance(new, MixtureNorm) and not getattr(old, "track_running_stats", True):
        yield _NOT_TRACKED
    if invalid := remark_on_values({**dict(old.named_parameters()), **dict(old.named_buffers())}):
        yield invalid
    if _has_hooks(old, new):
        yield "hooks of replaced modules and parameters do not run; register them again"
    if added := ", ".join(_tensors_beside(old)):
        yield f"{added} inside the norm is no tensor of its class, and is removed"
    # torch's conversion to SyncBatchNorm replaces timm's norms so.
    if not isinstance(old, AdaptiveNorm) and not modules_after(old):
        idle = [name for name, m in old.named_children() if not isinstance(m, nn.Identity)]
        if idle:
            yield f"{', '.join(idle)} inside the norm does not run, and is removed"


def _has_hooks(old: nn.Module, new: nn.Module) -> bool:
    """Return whether a norm has hooks, or parameters with hooks, that the new norm lacks."""
    # Among them are hooks of the state dict.
    kinds = [(module, name) for module in modules_of(old) for name in vars(module)]
    if any(getattr(module, name) for module, name in kinds if name.endswith("_hooks")):
        return True
    # The activation of timm's norms stays.
    parameters = {p for module in modules_of(old) for p in module.parameters(recurse=False)}
    replaced = parameters - {*new.parameters()}
    kinds_of_hooks = "_backward_hooks", "_post_accumulate_grad_hooks"
    return any(getattr(p, name, None) for p in replaced for name in kinds_of_hooks)


def _tensors_beside(norm: nn.Module) -> Iterator[str]:
    """Yield the names of parameters and buffers that a norm has beside those of its class."""
    layout = LAYOUTS.get(norms.kind_of_module(norm), (set(), set()))
    known = {*TENSORS, "num_batches_tracked"}.union(*layout)
    for name, tensor in {**norm._parameters, **norm._buffers}.items():
        if tensor is not None and name not in known:
            yield name


def _layer_for(old: Any, like: dict, swap: Swap) -> nn.Module:
    """Return the layer that replaces a norm, with the norm's tensors, mode and requires_grad."""
    kept = {o: getattr(old, o) for o in swap.of_norm if getattr(old, o, None) is not None}
    mixes = issubclass(swap.layer, MixtureNorm)
    if mixes and "Sync" in type(old).__name__:  # torch's, or one that ``types`` names
        kept["sync"] = getattr(old, "process_group", None) or True
    if isinstance(old, SwitchNorm):
        kept |= {name: getattr(old, name) for name in (*Switch._fields, "sync")}
    if mixes and not getattr(old, "track_running_stats", True):
        kept["momentum"] = 0.0
    tensors = {**old._parameters, **old._buffers}
    state = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    source = source_of(type(old))
    if kept.get("eps") == 0:
        refuse(not mixes, _NEEDS_EPS)
        kept["eps"], state["weight"] = _EPS, _weight_at_eps(state)
    channels = num_channels(old)
    new = swap.layer(channels, **kept | swap.options, **like)
    for name, value in {"num_groups": getattr(old, "num_groups", None), **kept}.items():
        given = getattr(new, name, None)
        differs = name != "sync" and value not in (None, given)
        refuse(differs, f"{name}={value!r}, where the layer has {given!r}")
    _take_tensors(old, new, state)
    if lacked := getattr(old, "lacked", None) or sorted(AFFINE - state.keys()):
        vars(new)["lacked"] = lacked
    if applied := getattr(old, "fused_activation", None):
        new.fused_activation = applied
    if not (after := modules_after(old)):
        # A name, because pickles and compilers may not know a class.
        vars(new)["replaced"] = path_of(type(old)) if source else getattr(old, "replaced", "")
        return new
    joined = with_activation(new, *after)
    joined.training = old.training
    return joined


@torch.no_grad()
def _weight_at_eps(state: State) -> Tensor:
    """Return the weight that makes a BatchNorm of eps=0 the same function with ``_EPS``."""
    var = state["running_var"]
    refuse(not var.is_meta and not var.all(), _INFINITE)
    var = var.to(torch.promote_types(var.dtype, torch.float32))
    weight = state.get("weight", torch.ones_like(state["running_var"]))
    return (weight * (1 + _EPS / var).sqrt()).to(weight)


def _plain_for(old: Any, like: dict, dims: int) -> nn.Module:
    """Return the plain norm that a layer computes, with the layer's tensors and mode."""
    is_variant = isinstance(old, AutoencoderNorm) and not old.has_papers_form
    refuse(is_variant, "a variant of the layer cannot compute a plain norm")
    refuse(old.fused_activation, "it applies an activation outside the modules known for this")
    state, c = dict(old.state_dict(keep_vars=True)), old.num_channels
    check_complete(state, norms.kind_of_module(old))
    chosen = chosen_by(state, getattr(old, "normalizers", ()))
    plain = plain_norm_of(
        norms.kind_of_module(old), "IN" if isinstance(old, ILMInstanceNorm) else chosen
    ).name
    if plain == "IN":
        new = getattr(nn, f"InstanceNorm{dims}d")(c, old.eps, affine=True, **like)
    elif plain == "BN":
        new = getattr(nn, f"BatchNorm{dims}d")(c, old.eps, old.momentum, **like)
        if state["weight"].dim() == 2:
            # The rule expects BN's row to be the last.
            rows = sorted(range(len(old.normalizers)), key=lambda k: old.normalizers[k] == "BN")
            state["weight"] = state["weight"][rows]
    else:
        groups = 1 if chosen == "LN" else old.num_groups
        new = nn.GroupNorm(groups, c, old.eps, **like)
    _take_tensors(old, new, state)
    lacked = getattr(old, "lacked", ())
    if all(is_identity(name, getattr(new, name)) for name in lacked):
        for name in lacked:
            setattr(new, name, None)
        new.affine = new.weight is not None
    replaced = getattr(old, "replaced", "")
    made = (framework.as_replaced(new, replaced) for framework in FRAMEWORKS.values())
    return next(filter(None, made), new)


def _take_tensors(old: nn.Module, new: nn.Module, state: State) -> None:
    """Give a new norm the converted tensors, training mode and ``requires_grad`` of the old one."""
    # New parameters are trained if any of the old norm's is, or if it has none and is not frozen.
    parameters = old.named_parameters(recurse=isinstance(old, AdaptiveNorm))  # timm's have others
    trained = {name: p.requires_grad for name, p in parameters}
    frozen = not trained and "weight" in old._buffers  # as in FrozenBatchNorm2d
    tensors = adapt(state, norms.kind_of_module(old), new)
    new.requires_grad_(any(trained.values()) if trained else not frozen)
    if frozen or getattr(old, "frozen", False):
        freeze(new)
    for name in new._parameters.keys() & trained.keys():
        getattr(new, name).requires_grad_(trained[name])
    # Last, because it gives ``requires_grad`` of the new parameters to the old norm's tensors.
    new.load_state_dict(tensors, assign=True)
    new.train(old.training)
