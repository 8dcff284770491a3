"""Convert the norms of a model."""

import inspect
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ..layers import NORMS, ILMInstanceNorm, OptionError, SwitchNorm, freeze
from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm
from ..layers.levels import PerLevelNorm, restart_levels
from ..layers.mixture import MixtureNorm
from ..layers.options import automatic, check_choice
from . import norms
from .common import Match, Report, check_match, check_options, matches, source_norm
from .rules import INEXACT, OF_BN, RULES, NotConvertible, State, adapt, call_of, chosen_by, refuse

_PARAMETRIZED = "first call torch.nn.utils.parametrize.remove_parametrizations"


def convert(
    model: nn.Module,
    to: str,
    *,
    match: Match = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    types: Iterable[type] | None = None,
    replacing: str | None = None,
    **options,
) -> tuple[nn.Module, Report]:
    """Replace a model's norms, in place, by layers that start as the same functions.

    With ``replacing="BN"``, and from BatchNorm to SN or SSN, outputs change, as the report says:
    weights are kept, and the model must be trained further.

    The layers keep weights, statistics, eps, number of groups, dtype, device, training mode and
    ``requires_grad``. A module with several names stays one module. timm's norms with an activation
    become a Sequential of layer and activation. A norm stays, with the reason in the report, if the
    layer cannot replace it exactly, if it shares a parameter with another module, or if the
    constructor refuses an option's value. Hooks stay with the replaced module. Build the optimizer,
    and wrap the model for several processes, after the conversion.

    Args:
        model: any module; on the meta device, layers have no values.
        to: a key of :data:`ilm_plugins.NORMS`; the class's ``replaces`` is the plain norm that it
            replaces. "ILMLN" replaces GroupNorm of one group, "SSN" also SN.
        match: names of the norms to replace, with * for any characters, dots too; default: all.
        where: a function of name and module that returns whether to replace the norm. A norm must
            be chosen by all of ``match``, ``where`` and ``types`` that are given.
        types: exact classes to replace, instead of the plain norms of torch and the frameworks;
            each must compute the same as its base class.
        replacing: "BN" to replace BatchNorm also by layers that replace GroupNorm or InstanceNorm,
            with its weight, bias and eps; groups and key groups are "auto" by default.
        options: of the layer, such as ``key_group_size=8``.

    Returns:
        The model, or the new layer if the model itself is a norm; and a report on each norm, and on
        each module that is named like a norm.

    Raises:
        OptionError: the key or an option is unknown, or the layer takes this option from each norm;
            the layer does not replace the norm ``replacing``; a class of ``types`` is no norm; or
            ``match`` fits no norm of a model that has norms.
    """
    plain, of_norm = source_norm(to, replacing)
    types = None if types is None else frozenset(types)
    check_options(to, options, of_norm)
    bases = *norms.BASES.values(), AdaptiveNorm
    for cls in types or ():
        if not issubclass(cls, bases) and norms.named_family(cls) is None:
            raise OptionError(f"types={cls.__name__}, which derives from none of torch's norms")

    def build(old: nn.Module, like: dict) -> nn.Module:
        _check_replaceable(old, to, plain, of_norm, types)
        return _layer_for(old, like, NORMS[to], of_norm, replacing, options)

    return _replace(model, match, where, norms.may_be_norm, build)


def revert(
    model: nn.Module,
    *,
    match: Match = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    dims: int = 2,
) -> tuple[nn.Module, Report]:
    """Replace a model's layers from this package, in place, by plain norms that compute the same.

    A layer that computes anything else than a plain norm stays, with the reason in the report.

    Args:
        model, match, where: see :func:`convert`; they select among this package's layers.
        dims: number of spatial dimensions, 1 to 3, of new InstanceNorms and BatchNorms.

    Returns:
        The model, or the new norm if the model itself is a layer; and a report on each layer.

    Raises:
        OptionError: ``dims`` is invalid, or ``match`` fits no layer.
    """
    check_choice("revert", "dims", dims, (1, 2, 3))
    build = partial(_plain_for, dims=dims)
    return _replace(model, match, where, lambda m: isinstance(m, AdaptiveNorm), build)


def _replace(
    model: nn.Module,
    match: Match,
    where: Callable[[str, nn.Module], bool] | None,
    among: Callable[[nn.Module], bool],
    build: Callable[[nn.Module, dict], nn.Module],
) -> tuple[nn.Module, Report]:
    """Replace the selected norms by ``build(norm, factory options)``; see :func:`convert`."""
    names, report = _find(model, among), Report()
    check_match(match, itertools.chain(*names.values()))
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    for old, own_names in names.items():
        if not any(matches(n, match) and (where is None or where(n, old)) for n in own_names):
            continue
        try:
            like = _factory_options(model, own_names[0])
            levels = [build(level, like) for level in norms.levels_of(old) or [old]]
            _check_untied(old, owners)
        except (NotConvertible, OptionError) as error:
            report.left |= dict.fromkeys(own_names, str(error))
            continue
        new = _join_levels(levels) if norms.levels_of(old) else levels[0]
        for name in own_names:
            report.converted[name] = f"{norms.class_of(old)} -> {norms.class_of(_layer_in(new))}"
            model = _set(model, name, new)
        for words in _changes((norms.levels_of(old) or [old])[0], _layer_in(levels[0])):
            report.note(words, own_names[0])
    if any(isinstance(module, PerLevelNorm) for module in model.modules()):
        _restart_levels_in_heads(model)
    return model, report


def _find(model: nn.Module, among: Callable[[nn.Module], bool]) -> dict[nn.Module, list[str]]:
    """Return norms and their names; norms of the levels of a pyramid are found as one."""
    names = defaultdict(list)
    within = {level for m in model.modules() if norms.levels_of(m) for level in m.children()}
    for name, module in model.named_modules(remove_duplicate=False):
        if module not in within and among((norms.levels_of(module) or [module])[0]):
            names[module].append(name)
    return names


def _set(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Replace a model's module of this name, and return the model."""
    if not name:
        return new
    parent, _, attribute = name.rpartition(".")
    around = model.get_submodule(parent)
    setattr(around, attribute, new)
    # mmcv's ConvModule can fuse a convolution with BN, in a way that it chooses once.
    if hasattr(around, "turn_on_efficient_conv_bn_eval"):
        around.turn_on_efficient_conv_bn_eval(False)
    return model


def _layer_in(new: nn.Module) -> nn.Module:
    return new[0] if type(new) is nn.Sequential else new


def _check_untied(old: nn.Module, owners: Counter) -> None:
    """Raise NotConvertible if a parameter of a norm also belongs to a module outside it."""
    own = Counter(p for module in old.modules() for p in module.parameters(recurse=False))
    for name, p in old.named_parameters():
        refuse(owners[p] > own[p], f"its {name} is also that of another module")


def _join_levels(levels: list[nn.Module]) -> nn.Module:
    """Return one norm for all levels, with the parameters of the first and the buffers of each."""
    if getattr(levels[0], "running_mean", None) is None:
        return levels[0]
    new = PerLevelNorm(levels[0], len(levels)).train(levels[0].training)
    for level, own in zip(new, levels, strict=True):
        level._buffers.update(own._buffers)
    return new


def _restart_levels_in_heads(model: nn.Module) -> None:
    """Make RetinaNet's heads begin at the first level of PerLevelNorms in each forward pass."""
    for head in model.modules():
        named_so = any(cls.__name__ == "RetinaNetHead" for cls in type(head).__mro__)
        if named_so and restart_levels not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(restart_levels)


def _factory_options(model: nn.Module, name: str) -> dict:
    """Return device and dtype of the first floating tensor of a norm, or of what is around it."""
    while True:
        around = model.get_submodule(name)
        for tensor in itertools.chain(around.parameters(), around.buffers()):
            if tensor.is_floating_point():
                return {"device": tensor.device, "dtype": tensor.dtype}
        if not name:
            return {}
        name = name.rpartition(".")[0]


def _changes(old: nn.Module, new: nn.Module) -> Iterator[str | None]:
    """Yield remarks on what differs after a replacement; None is no remark."""
    is_bn, mixes = isinstance(new, _BatchNorm), isinstance(new, MixtureNorm)
    yield INEXACT.get((norms.kind_of_module(old), norms.kind_of_module(new)))
    if is_bn and old.frozen:
        yield "no longer frozen: in training the batch's statistics are used, and running ones move"
    if (is_bn or mixes) and norms.is_synchronized(old) and not norms.is_synchronized(new):
        yield "the batch's statistics were those of all processes, and are each process's own"
    if mixes and getattr(old, "momentum", 0) is None:
        yield "running statistics were an average of all batches, and have momentum 0.1"
    if mixes and new.frozen and not isinstance(old, AdaptiveNorm):
        yield f"frozen, as {type(old).__name__} is; to train it, call freeze(layer, False)"


def _layer_for(
    old: nn.Module,
    like: dict,
    layer: type[AdaptiveNorm],
    of_norm: Iterable[str],
    replacing: str | None,
    options: dict,
) -> nn.Module:
    """Return the layer that replaces a norm, with the norm's tensors, mode and requires_grad."""
    kept = {o: getattr(old, o) for o in of_norm if getattr(old, o, None) is not None}
    if replacing == "BN" and not issubclass(layer, MixtureNorm):
        kept |= automatic(layer)
    if "init" in inspect.signature(layer.__init__).parameters:
        kept["init"] = "identity"
    if isinstance(old, nn.SyncBatchNorm) and issubclass(layer, MixtureNorm):
        kept["sync"] = old.process_group or True
    of_sn = ("normalizers", "num_groups") if isinstance(old, SwitchNorm) else ()
    if of_sn:
        kept |= {name: getattr(old, name) for name in (*of_sn, "sync")}
    # FrozenBatchNorm2d of some packages has no num_features.
    found = [getattr(old, name, None) for name in ("num_channels", "num_features")]
    channels = found[0] or found[1] or len(old.running_mean)
    new = layer(channels, **{**kept, **options}, **like)
    for name in of_sn:
        given, own = getattr(new, name), getattr(old, name)
        refuse(given != own, f"{name}={given!r}, where the SwitchNorm has {own!r}")
    state = {**old._parameters, **old._buffers}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    if "running_mean" not in state:
        state = {"weight": new.weight, "bias": new.bias, **state}
    _take_tensors(old, new, state)
    if norms.path_of(type(old)) not in norms.WITH_ACTIVATION:
        return new
    after = [getattr(old, name, None) for name in ("drop", "act")]
    after = [module for module in after if not isinstance(module, nn.Identity | None)]
    return nn.Sequential(new, *after) if after else new


def _check_replaceable(
    module: nn.Module,
    to: str,
    plain: str,
    of_norm: Iterable[str],
    types: frozenset[type] | None,
) -> None:
    """Raise NotConvertible unless a module is exactly ``plain``, or a layer with a rule."""
    cls, of_module = type(module), norms.family(module)
    base = norms.BASES[plain].__name__.lstrip("_")
    of_layer = norms.LAYERS.get(cls), norms.LAYERS[NORMS[to]]
    if of_layer in RULES and (types is None or cls in types):
        return
    name, on_request = cls.__name__, f"; {OF_BN}" if of_module == "BN" else ""
    lost = [n for n, child in module.named_children() if not isinstance(child, nn.Identity)]
    known = types or cls in norms.PLAIN or norms.named_family(cls)
    refuse(isinstance(module, AdaptiveNorm), f"is {name}, already a layer of this package")
    refuse(of_module != plain, f"{name}, but {to} replaces {base}{on_request}")
    refuse(parametrize.is_parametrized(module), f"{name}; {_PARAMETRIZED}")
    refuse(types is not None and cls not in types, f"{name}, which is not among types")
    refuse(
        lost and norms.path_of(cls) not in norms.WITH_ACTIVATION,
        f"{name} runs modules of its own, {', '.join(lost)}, that {to} would lack; first put a "
        "plain norm and these modules into a Sequential",
    )
    refuse(
        not known,
        f"{name} derives from {base} and may compute something else; if it does not, name it in "
        "types",
    )
    tracks = getattr(module, "running_mean", None) is not None
    words = "with track_running_stats, evaluation does not use the instance's statistics"
    refuse(plain == "IN" and tracks, words)
    uses_tracked = plain == "BN" and issubclass(NORMS[to], MixtureNorm)
    refuse(uses_tracked and not tracks, "without running statistics, evaluation uses the batch's")
    groups = 1 if plain != "GN" or "num_groups" in of_norm else module.num_groups
    refuse(groups != 1, f"{groups} groups, where {to} has one; ILMGN keeps them")


def _plain_for(old: nn.Module, like: dict, dims: int) -> nn.Module:
    """Return the plain norm that a layer computes, with the layer's tensors and mode."""
    name, is_ilm = type(old).__name__, isinstance(old, AutoencoderNorm)
    refuse(parametrize.is_parametrized(old), f"{name}; {_PARAMETRIZED}")
    refuse(type(old) not in norms.LAYERS, f"{name} may compute something else than its base")
    refuse(is_ilm and not old.has_papers_form, f"{call_of(old)} cannot compute a plain norm")
    state, c = dict(old.state_dict(keep_vars=True)), old.num_channels
    chosen = chosen_by(state, getattr(old, "normalizers", ()))
    if isinstance(old, ILMInstanceNorm) or chosen == "IN":
        new = getattr(nn, f"InstanceNorm{dims}d")(c, old.eps, affine=True, **like)
    elif chosen == "LN":
        new = nn.GroupNorm(1, c, old.eps, **like)
    elif isinstance(old, MixtureNorm) and chosen != "GN":
        new = getattr(nn, f"BatchNorm{dims}d")(c, old.eps, old.momentum, **like)
        if state["weight"].dim() == 2:
            # The rule expects BN's row to be the last.
            rows = sorted(range(len(old.normalizers)), key=lambda k: old.normalizers[k] == "BN")
            state["weight"] = state["weight"][rows]
    else:
        new = nn.GroupNorm(old.num_groups, c, old.eps, **like)
    _take_tensors(old, new, state)
    return new


def _take_tensors(old: nn.Module, new: nn.Module, state: State) -> None:
    """Give a new norm the converted tensors, training mode and ``requires_grad`` of the old one.

    New parameters are trained if any of the old norm's is, or if it has none and is not frozen.
    """
    trained = {name: p.requires_grad for name, p in old.named_parameters()}
    frozen = not trained and "weight" in old._buffers  # as in FrozenBatchNorm2d
    tensors = adapt(state, norms.kind_of_module(old), new)
    new.requires_grad_(any(trained.values()) if trained else not frozen)
    new.load_state_dict(tensors, assign=True)
    if frozen or getattr(old, "frozen", False):
        freeze(new)
    for name in new._parameters.keys() & trained.keys():
        getattr(new, name).requires_grad_(trained[name])
    new.train(old.training)
