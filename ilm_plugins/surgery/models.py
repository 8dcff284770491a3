"""Convert the norms of a model."""

import copy
import inspect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from ..layers import NORMS, ILMInstanceNorm, OptionError, SparseSwitchNorm, SwitchNorm
from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm
from ..layers.levels import PerLevelNorm, restart_levels
from ..layers.mixture import MixtureNorm
from ..layers.options import automatic, check_choice
from .common import (
    SOURCE_NORMS,
    Match,
    Report,
    check_layer,
    check_match,
    matches,
    source_norm,
)
from .rules import OF_BN, OWN_STATISTICS, NotConvertible, State, adapt, call_of, describe_change

#: Name of a plain norm -> its base class.
BASES = {"GN": nn.GroupNorm, "IN": _InstanceNorm, "BN": _BatchNorm, "LN": nn.LayerNorm}
#: Classes that compute exactly a plain norm. Their subclasses may compute something else.
PLAIN = {
    nn.GroupNorm: "GN",
    nn.InstanceNorm1d: "IN",
    nn.InstanceNorm2d: "IN",
    nn.InstanceNorm3d: "IN",
    nn.BatchNorm1d: "BN",
    nn.BatchNorm2d: "BN",
    nn.BatchNorm3d: "BN",
    nn.SyncBatchNorm: "BN",
}
#: The same for classes of the frameworks, by name, because no framework is imported here.
PLAIN_BY_NAME = {
    "mmengine.model.utils._BatchNormXd": "BN",
    "mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm": "BN",
    "mmcv.cnn.utils.sync_bn._BatchNormXd": "BN",
    "mmcv.utils.parrots_wrapper.SyncBatchNorm": "BN",
}
#: Packages whose classes named FrozenBatchNorm2d, or DetrFrozenBatchNorm2d and the like, compute
#: BatchNorm from buffers, with an eps of 1e-5 if they have none.
WITH_FROZEN_BN = {"detectron2", "torchvision", "transformers"}
#: detectron2's BatchNorm with one weight and bias for all levels of a pyramid, in RetinaNet's head.
CYCLE = "detectron2.layers.batch_norm.CycleBatchNormList"
#: Classes of modules and parameters that keep references to the parameters of a wrapped model; by
#: name, as no release of torch has all of them.
WRAPPERS = {
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
    "DTensor",
    "BaseAveragedModel",
}


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
    ``requires_grad``. A module with several names, and a parameter of several modules, stay shared.
    Hooks are not moved; the report lists them. A norm that the layer cannot replace exactly stays,
    with the reason in the report, as do all norms if the constructor refuses an option's value.
    Build the optimizer, and wrap the model for several processes, after the conversion. A norm must
    be chosen by all of ``match``, ``where`` and ``types`` that are given.

    Args:
        model: any module; on the meta device, layers have no values.
        to: a key of :data:`ilm_plugins.NORMS`: "ILMGN", "AssocNorm" and "AN" replace GroupNorm,
            "ILMLN" GroupNorm of one group, "ILMIN" InstanceNorm, "EN" and "SN" BatchNorm, "SSN"
            BatchNorm and SN.
        match: names of the norms to replace, with * for any characters, dots too; default: all.
        where: a function of name and module that returns whether to replace the norm.
        types: exact classes to replace, instead of the plain norms of torch and the frameworks;
            each must compute the same as its base class.
        replacing: "BN" to replace BatchNorm by ILMGN, ILMIN, ILMLN, AssocNorm or AN, with its
            weight, bias and eps; groups and key groups are "auto" by default.
        options: of the layer, such as ``key_group_size=8``.

    Returns:
        The model, or the new layer if the model itself is a norm; and a report on each norm.

    Raises:
        OptionError: the key or an option is unknown, or the layer takes this option from each norm;
            the layer does not replace the norm ``replacing``; a class of ``types`` is no norm;
            ``match`` fits no norm of a model that has norms; or a part of the model is wrapped in
            DistributedDataParallel, FSDP or the like.
    """
    check_layer(to, options, replacing, of_model=True)
    types = None if types is None else frozenset(types)
    for cls in types or ():
        if not issubclass(cls, (*BASES.values(), AdaptiveNorm)) and _named_family(cls) is None:
            raise OptionError(
                f"types={cls.__name__}, which derives from none of torch's norms; first replace "
                "its modules by one of them"
            )
    build = partial(_layer_for, to=to, replacing=replacing, types=types, options=options)
    return _replace(model, match, where, _may_be_norm, build)


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
        OptionError: ``dims`` is invalid, ``match`` fits no layer, or a part of the model is wrapped
            in DistributedDataParallel, FSDP or the like.
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
    """Replace the selected norms of a model by new modules; see :func:`convert`.

    Args:
        model, match, where: see :func:`convert`.
        among: returns whether a module can be selected at all.
        build: returns the new module for a norm, given the norm and the options device and dtype;
            raises NotConvertible or OptionError to keep the norm.

    Returns:
        The model, changed in place, or the new module if the model itself is a norm; and the
        report, with the reason for each selected norm that stays.

    Raises:
        OptionError: ``match`` fits none of the modules, or a part of the model is wrapped.
    """
    _check_unwrapped(model)
    names = defaultdict(list)
    per_level = [module for module in model.modules() if _levels(module)]
    within = {level for module in per_level for level in module.children()}
    for name, module in model.named_modules(remove_duplicate=False):
        if module not in within and among((_levels(module) or [module])[0]):
            names[module].append(name)
    check_match(match, itertools.chain(*names.values()))

    report, built = Report(), {}
    for old, own_names in names.items():
        if not any(matches(n, match) and (where is None or where(n, old)) for n in own_names):
            continue
        try:
            if "forward" in vars(old):
                raise NotConvertible(
                    "its forward was replaced, and would be lost; restore it first"
                )
            like = _factory_options(model, own_names[0])
            levels = [build(level, like) for level in _levels(old) or [old]]
            built[old] = _per_level(levels) if _levels(old) else levels[0]
        except (NotConvertible, OptionError) as error:
            report.left |= dict.fromkeys(own_names, str(error))
    for old, words in _drop_untied(built, model):
        report.left |= dict.fromkeys(names[old], words)

    made: dict[nn.Parameter, nn.Parameter] = {}
    for old, new in built.items():
        for name, old_param, new_param in _new_parameters(old, new):
            setattr(new, name, made.setdefault(old_param, new_param))
        for name in names[old]:
            parent, _, attribute = name.rpartition(".")
            if name:
                around = model.get_submodule(parent)
                setattr(around, attribute, new)
                # mmcv's ConvModule can fuse a convolution with BN, in a way that it chooses once.
                if hasattr(around, "turn_on_efficient_conv_bn_eval"):
                    around.turn_on_efficient_conv_bn_eval(False)
            else:
                model = new
            report.converted[name] = f"{_name_of(old)} -> {_name_of(new)}"
        for words in _changes(*((_levels(norm) or [norm])[0] for norm in (old, new))):
            report.note(words, names[old][0])
    _restart_levels_in_heads(model)
    return model, report


def _levels(module: nn.Module) -> list[nn.Module]:
    """Return the norms of a module that has one for each level of a pyramid; [] for any other."""
    if isinstance(module, PerLevelNorm):
        return list(module)
    if _path(type(module)) != CYCLE:
        return []
    levels = [copy.copy(level) for level in module]
    for level in levels:
        level._parameters = dict(level._parameters) | dict(module._parameters)
        level.affine = "weight" in module._parameters
    return levels


def _per_level(levels: list[nn.Module]) -> nn.Module:
    """Return one norm for all levels, with the parameters of the first and the buffers of each."""
    if getattr(levels[0], "running_mean", None) is None:
        return levels[0]
    new = PerLevelNorm(levels[0], len(levels)).train(levels[0].training)
    for level, own in zip(new, levels, strict=True):
        level._buffers.update(own._buffers)
    return new


def _restart_levels_in_heads(model: nn.Module) -> None:
    """Make RetinaNet heads with a PerLevelNorm start at the first level in each forward pass."""
    for head in model.modules():
        named_so = any(cls.__name__ == "RetinaNetHead" for cls in type(head).__mro__)
        has_hook = restart_levels in head._forward_pre_hooks.values()
        per_level = any(isinstance(module, PerLevelNorm) for module in head.modules())
        if named_so and per_level and not has_hook:
            head.register_forward_pre_hook(restart_levels)


def _name_of(norm: nn.Module) -> str:
    """Return the name of a norm's class, such as "BatchNorm2d" or "BatchNorm2d of each level"."""
    levels = _levels(norm)
    return f"{type(levels[0]).__name__} of each level" if levels else type(norm).__name__


def _factory_options(model: nn.Module, name: str) -> dict:
    """Return {"device": ..., "dtype": ...} for the replacement of a model's norm.

    They are those of the norm's first floating-point tensor or, if it has none, of the nearest
    module around it that has one; an empty dict if there is none.

    Args:
        model: the whole model.
        name: the norm's dotted name in the model; "" if the model itself is the norm.
    """
    while True:
        around = model.get_submodule(name)
        for tensor in itertools.chain(around.parameters(), around.buffers()):
            if tensor.is_floating_point():
                return {"device": tensor.device, "dtype": tensor.dtype}
        if not name:
            return {}
        name = name.rpartition(".")[0]


def _check_unwrapped(model: nn.Module) -> None:
    """Raise OptionError if a part of the model is wrapped, as by DistributedDataParallel.

    Wrapped are modules of the classes in :data:`WRAPPERS` or their subclasses, and modules with
    parameters of these classes.
    """
    for name, module in model.named_modules():
        kinds = [cls.__name__ for cls in type(module).__mro__]
        kinds += [type(p).__name__ for p in module.parameters(recurse=False)]
        for kind in kinds:
            if kind in WRAPPERS:
                raise OptionError(
                    f"{name or 'the model'} is wrapped in {kind}, which would miss new "
                    "parameters; convert the plain model, such as the .module of "
                    "DistributedDataParallel, and wrap that"
                )


def _new_parameters(
    old: nn.Module, new: nn.Module
) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Yield name, old parameter and new parameter for each that a replacement changes.

    Parameters of child modules, and parameters that both modules share, are left out.
    """
    for name, old_param in old._parameters.items():
        new_param = new._parameters.get(name)
        if old_param is not None and old_param is not new_param:
            yield name, old_param, new_param


def _drop_untied(
    built: dict[nn.Module, nn.Module], model: nn.Module
) -> Iterator[tuple[nn.Module, str]]:
    """Remove the replacements that would untie a parameter shared with a module that stays.

    Args:
        built: norm -> its replacement; entries are removed in place, as the iterator proceeds.
        model: the model with the norms.

    Yields:
        Each norm that was removed from ``built``, and the reason.
    """

    def owners(modules: Iterable[nn.Module]) -> Counter:
        return Counter(p for m in modules for p in m.parameters(recurse=False))

    of_all, untied = owners(model.modules()), True
    while untied:
        of_built = owners(itertools.chain(*(old.modules() for old in built)))
        untied = {
            old: f"its {shared[0]} is also that of another module, which stays"
            for old, new in built.items()
            if (shared := [n for n, p, _ in _new_parameters(old, new) if of_all[p] > of_built[p]])
        }
        for old in untied:
            del built[old]
        yield from untied.items()


def _changes(old: nn.Module, new: nn.Module) -> Iterator[str | None]:
    """Yield remarks on what differs after a replacement: hooks, outputs, freezing, statistics.

    A remark is a sentence for the report; None is no remark, to be skipped.

    Args:
        old: the norm that was replaced.
        new: its replacement, with the norm's converted tensors.
    """
    kept = {*new.parameters()}
    gone = [*old.modules(), *(p for p in old.parameters() if p not in kept)]
    found = (getattr(part, name) for part in gone for name in dir(part) if name.endswith("_hooks"))
    hooks = [hook for kind in found if isinstance(kind, dict) for hook in kind.values()]
    if hooks:
        called = ", ".join(getattr(h, "__qualname__", type(h).__name__) for h in hooks)
        yield f"hooks stay with the module that was replaced: {called}"
    if _family(old) == "BN" and not isinstance(new, MixtureNorm | _BatchNorm):
        yield OWN_STATISTICS  # also where BN has no running statistics, by which rules know it
    else:
        yield describe_change(old.state_dict(), new)
    if isinstance(new, _BatchNorm) and old.frozen:
        yield "no longer frozen: in training the batch's statistics are used, and running ones move"
    of_batches = isinstance(new, _BatchNorm | MixtureNorm)
    if of_batches and _is_synchronized(old) and not _is_synchronized(new):
        yield "the batch's statistics were those of all processes, and are each process's own"
    if not isinstance(new, MixtureNorm) or isinstance(old, AdaptiveNorm):
        return
    if not isinstance(old, _BatchNorm):
        if new.frozen:
            yield f"frozen, as {type(old).__name__} is; to train it, call its requires_grad_()"
        return
    if old.momentum is None:
        yield "running statistics were an average of all batches, and have momentum 0.1"
    if old.affine and not any(p.requires_grad for p in new.parameters()):
        yield "frozen: in training, too, running statistics are used, and left alone"


def _is_synchronized(norm: nn.Module) -> bool:
    """Return whether a norm takes the batch's statistics over all processes."""
    return isinstance(norm, nn.SyncBatchNorm) or bool(getattr(norm, "sync", False))


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is, or derives from, a plain norm or a layer of NORMS."""
    return isinstance(module, tuple(NORMS.values())) or _family(module) is not None


def _may_be_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, or is named like one and contains none."""
    if is_norm(module):
        return True
    named_so = re.search(r"Norm(2d)?$", type(module).__name__)
    return bool(named_so) and not any(map(_may_be_norm, module.children()))


def _family(module: nn.Module) -> str | None:
    """Return the plain norm that a module is or derives from, a key of :data:`BASES`; or None."""
    named = _named_family(type(module))
    return named or next((f for f, base in BASES.items() if isinstance(module, base)), None)


def _named_family(cls: type) -> str | None:
    """Return the plain norm that a framework's class computes, known by its name; or None."""
    package = cls.__module__.partition(".")[0]
    if package in WITH_FROZEN_BN and cls.__name__.endswith("FrozenBatchNorm2d"):
        return "BN"
    return PLAIN_BY_NAME.get(_path(cls))


def _path(cls: type) -> str:
    """Return a class's module and qualified name, joined with a dot."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _layer_for(
    old: nn.Module,
    like: dict,
    to: str,
    replacing: str | None,
    types: frozenset[type] | None,
    options: dict,
) -> nn.Module:
    """Build the layer that replaces a plain norm, with the norm's converted tensors.

    It also takes over the training mode, and which tensors require gradients.

    Args:
        old: the norm; it is not changed.
        like: keyword arguments device and dtype of the layer; see :func:`_factory_options`.
        to, replacing, types, options: see :func:`convert`.

    Raises:
        NotConvertible: the norm cannot be replaced exactly by this layer.
        OptionError: an option has an invalid value, also for this norm's number of channels.
    """
    plain, of_norm = source_norm(to, replacing)
    _check_replaceable(old, to, plain, types)
    of_old = {name: getattr(old, name, None) for name in of_norm}
    kept = {name: value for name, value in of_old.items() if value is not None}
    if replacing == "BN" and not issubclass(NORMS[to], MixtureNorm):
        kept |= automatic(NORMS[to])
    if "init" in inspect.signature(NORMS[to].__init__).parameters:
        kept["init"] = "identity"
    state = dict(old.state_dict(keep_vars=True))
    if isinstance(old, nn.GroupNorm):
        channels = old.num_channels
    else:  # FrozenBatchNorm2d has no num_features
        channels = getattr(old, "num_features", None) or len(old.running_mean)
    if isinstance(old, nn.SyncBatchNorm) and issubclass(NORMS[to], MixtureNorm):
        kept["sync"] = old.process_group or True
    if isinstance(old, SwitchNorm):
        kept |= {name: getattr(old, name) for name in ("sync", "normalizers", "num_groups")}
    new = NORMS[to](channels, **{**kept, **options}, **like)
    for name in ("normalizers", "num_groups") if isinstance(old, SwitchNorm) else ():
        if (given := getattr(new, name)) != kept[name]:
            raise NotConvertible(f"{name}={given!r}, where the SwitchNorm has {kept[name]!r}")
    if "running_mean" not in state:
        state = {"weight": new.weight, "bias": new.bias, **state}
    return _with_tensors_of(old, new, state)


def _check_replaceable(
    module: nn.Module, to: str, plain: str, types: frozenset[type] | None
) -> None:
    """Raise NotConvertible unless a module computes exactly the plain norm that ``to`` replaces.

    SSN replaces SN, too.

    Args:
        module: any norm.
        to: key of the layer in :data:`~ilm_plugins.NORMS`.
        plain: the plain norm, a key of :data:`BASES`.
        types: exact classes that may be replaced; None for those in :data:`PLAIN` and
            :data:`PLAIN_BY_NAME`.
    """
    cls, family = type(module), _family(module)
    base = BASES[plain].__name__.lstrip("_")
    if to == "SSN" and cls is SwitchNorm and (types is None or cls in types):
        return
    if isinstance(module, AdaptiveNorm):
        raise NotConvertible(f"is {cls.__name__}, already a layer of this package")
    if family != plain:
        on_request = f"; {OF_BN}" if family == "BN" else ""
        raise NotConvertible(f"{cls.__name__}, but {to} replaces {base}{on_request}")
    _check_not_parametrized(module)
    if types is not None and cls not in types:
        raise NotConvertible(f"{cls.__name__}, which is not among types")
    lost = [n for n, child in module.named_children() if not isinstance(child, nn.Identity)]
    if lost:
        raise NotConvertible(
            f"{cls.__name__} runs modules of its own, {', '.join(lost)}, that {to} would lack; "
            "first put a plain norm and these modules into a Sequential"
        )
    if types is None and cls not in PLAIN and _named_family(cls) is None:
        raise NotConvertible(
            f"{cls.__name__} derives from {base} and may compute something else; if it does not, "
            "name it in types"
        )
    has_statistics = getattr(module, "running_mean", None) is not None
    if plain == "IN" and has_statistics:
        raise NotConvertible(
            "with track_running_stats, evaluation does not use the instance's statistics"
        )
    if plain == "BN" and not has_statistics and issubclass(NORMS[to], MixtureNorm):
        raise NotConvertible("without running statistics, evaluation uses the batch's")
    if to == "ILMLN" and plain == "GN" and module.num_groups != 1:
        raise NotConvertible(f"{module.num_groups} groups, where ILMLN has one; ILMGN keeps them")


def _check_not_parametrized(module: nn.Module) -> None:
    """Raise NotConvertible if a parameter of a module is computed by a parametrization."""
    if parametrize.is_parametrized(module):
        raise NotConvertible(
            f"{type(module).__name__}; first call "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


def _plain_for(old: nn.Module, like: dict, dims: int) -> nn.Module:
    """Build the plain norm that replaces a layer of this package, with the layer's tensors.

    That is InstanceNorm for ILMInstanceNorm, BatchNorm for EN and SN, the norm that SSN's fixed
    ratios choose, and GroupNorm for the others. It also takes over the training mode, and which
    tensors require gradients.

    Args:
        old: the layer; it is not changed.
        like: keyword arguments device and dtype of the norm; see :func:`_factory_options`.
        dims: number of spatial dimensions of an InstanceNorm or BatchNorm.

    Raises:
        NotConvertible: with its tensors the layer does not compute what a plain norm does.
    """
    _check_not_parametrized(old)
    if type(old) not in {NORMS[key] for key in SOURCE_NORMS}:
        raise NotConvertible(f"{type(old).__name__} may compute something else than its base")
    if isinstance(old, AutoencoderNorm) and not old.has_papers_form:
        raise NotConvertible(f"{call_of(old)} cannot compute a plain norm")
    state, c = dict(old.state_dict(keep_vars=True)), old.num_channels
    chosen = _chosen_by(old)
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
    return _with_tensors_of(old, new, state)


def _chosen_by(layer: nn.Module) -> str | None:
    """Return the normalizer that an SSN's fixed ratios of the means choose; None if there is none.

    It is None for other layers, too.
    """
    fixed = layer.mean_fixed if isinstance(layer, SparseSwitchNorm) else None
    if fixed is None or fixed.is_meta or not fixed.any():
        return None
    return layer.normalizers[int(fixed.argmax())]


def _with_tensors_of(old: nn.Module, new: nn.Module, state: State) -> nn.Module:
    """Give a new module a norm's converted tensors, training mode and ``requires_grad``; return it.

    A parameter requires gradients if the norm's parameter of this name does. All other parameters
    do if any parameter of the norm does; if the norm has none, all do, unless its weight is a
    buffer, as in FrozenBatchNorm2d.

    Args:
        old: the norm.
        new: the module that replaces it; changed in place.
        state: the norm's tensors by name, not yet converted.

    Raises:
        NotConvertible: no rule converts the tensors to those of ``new``; see :func:`.rules.adapt`.
    """
    trained = {name: p.requires_grad for name, p in old.named_parameters()}
    frozen = not trained and "weight" in old._buffers
    tensors = adapt(state, new)
    new.requires_grad_(any(trained.values()) if trained else not frozen)
    new.load_state_dict(tensors, assign=True)
    for name in new._parameters.keys() & trained.keys():
        getattr(new, name).requires_grad_(trained[name])
    return new.train(old.training)
