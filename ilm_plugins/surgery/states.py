"""Convert the norms of a state dict."""

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence

from torch import Tensor, nn

from ..checkpoints import copy_state, find_absent, unwrap_state
from ..layers import NORMS, OptionError
from . import norms, rules
from .common import Match, Report, check_match, matches, source_norm
from .rules import NotConvertible, State, chosen_by, kind_of, refuse

_NOT_STORED = (
    "a state dict has no eps, num_groups or normalizers; where a layer has others, outputs change"
)


def convert_state(
    state: State, to: str, *, match: Match = None, replacing: str | None = None, **options
) -> tuple[dict[str, Tensor], Report]:
    """Convert the norms of a state dict without its model.

    The names of the tensors identify BatchNorm and the layers of the papers' released code; a
    weight and a bias alone, of GroupNorm or another module, are converted only if ``match`` selects
    them. A state dict has no eps, number of groups or normalizers: set them as in the original
    norms, otherwise outputs change. A norm that cannot be converted stays; the report says why.

    Args:
        state: names -> tensors; not changed.
        match, to, replacing, options: see :func:`convert`.

    Returns:
        The new state dict, which also has all other entries, and a report on each norm in it.

    Raises:
        OptionError: an argument is unknown, each norm determines the option, or ``match`` fits no
            norm of a state dict that has norms.
    """
    plain, of_norm, options = source_norm(to, replacing, options)
    layer, target = NORMS[to], norms.LAYERS[NORMS[to]]
    plain = "BN" if plain == "BN" else "GN or IN"
    defaults = {"num_groups": 1} if "num_groups" in of_norm else {}

    def build(tensors: State) -> nn.Module:
        kind = kind_of(tensors)
        refuse(kind == target, f"is {kind}, already a layer of this package")
        refuse((kind, target) not in rules.RULES, f"{kind} does not become {layer.__name__}")
        words = f"; {rules.OF_BN}" if kind == "BN" else ""
        refuse(kind in rules.PLAIN and kind != plain, f"{kind}, but {plain} is replaced{words}")
        words = "a weight and a bias alone do not tell the norm; to convert it, match it"
        refuse(kind == "GN or IN" and match is None, words)
        dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
        own = {"num_affine": len(tensors["weight_"])} if kind == "released AN" else {}
        return layer(_channels(tensors), **defaults | own | options, dtype=dtype)

    return _rewrite(state, match, build)


def revert_state(state: State, *, match: Match = None) -> tuple[dict[str, Tensor], Report]:
    """Convert the layers of a state dict to plain norms, where they compute exactly the same.

    EN and SSN must have the normalizers IN, LN and BN, in this order. Other layers stay.

    Args:
        state, match: see :func:`convert_state`.

    Returns:
        The new state dict, which also has all other entries, and a report on each layer in it.

    Raises:
        OptionError: ``match`` fits no norm of a state dict that has norms, plain ones included.
    """

    def build(tensors: State) -> nn.Module:
        """Return the plain norm for a layer's tensors; its eps and groups do not matter."""
        c, kind = _channels(tensors), kind_of(tensors)
        if kind in ("ILM", "released ILM", "AN") or chosen_by(tensors) not in (None, "BN"):
            return nn.GroupNorm(1, c)
        return nn.BatchNorm2d(c)

    return _rewrite(state, match, build, skip=rules.PLAIN)


def fit_state(state: State, model: nn.Module) -> tuple[dict[str, Tensor], Report]:
    """Convert the norms of a state dict to the norms of a model.

    OpenMMLab names norms by their type: ``gn1`` of a model may be ``bn1`` in the state dict.

    Args:
        state: names -> tensors, not changed; in the result, the prefixes "module." and "_orig_mod."
            of a wrapped model are removed.
        model: an untrained model, with plain norms or ours; not changed.

    Returns:
        A new state dict for ``model.load_state_dict(state, strict=False)``, and a report on norms
        of another kind than the model's, on missing tensors and on tensors that do not fit
        (``left``); tensors of another shape must be removed before loading.
    """
    state, wanted = unwrap_state(state, model), model.state_dict()
    report, found = Report(), _find_norms(state, wanted)
    own_norms = {n: m for n, m in model.named_modules(remove_duplicate=False) if norms.is_norm(m)}
    for name, layer in own_norms.items():
        source = next((n for n in _names(name) if n in found), None)
        if source is None:
            continue
        tensors, kind, target = found[source], kind_of(found[source]), norms.kind_of_module(layer)
        chosen = chosen_by(tensors)
        if kind == target:
            # A weight and a bias alone may be of any norm.
            if source not in own_norms and kind != "GN or IN":
                for key, tensor in tensors.items():
                    state.pop(_join(source, key), None)
                    state[_join(name, key)] = tensor
                report.converted[name] = "renamed"
        elif chosen not in (None, _normalizer_of(layer)):
            report.left[source] = f"its ratios are fixed on {chosen}, which {layer} is not"
        else:
            _convert_norm(state, report, source, tensors, name, lambda _, layer=layer: layer)
    for key, tensor in state.items():
        if key not in wanted:
            report.left[str(key)] = "the model has nothing of this name"
        elif isinstance(tensor, Tensor) and tensor.shape != wanted[key].shape:
            shapes = tuple(tensor.shape), tuple(wanted[key].shape)
            report.left[key] = "shape {}, where the model has shape {}".format(*shapes)
    report.missing = [key for key in find_absent(state, model) if key not in state]
    return state, report


def _rewrite(
    state: State, match: Match, build: Callable[[State], nn.Module], skip: Sequence[str] = ()
) -> tuple[dict[str, Tensor], Report]:
    """Convert the selected norms of a state dict; kinds to skip are not reported."""
    state, report, found = copy_state(state), Report(), _find_norms(state)
    check_match(match, found)
    for name, tensors in found.items():
        if matches(name, match) and kind_of(tensors) not in skip:
            _convert_norm(state, report, name, tensors, name, build)
    if report.converted:
        report.notes[_NOT_STORED] = []
    return state, report


def _find_norms(state: State, own: Container[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Return the norms in a state dict: name of the norm -> its own state dict."""
    modules = defaultdict(dict)
    for key, tensor in state.items():
        parts = key.split(".") if isinstance(key, str) and isinstance(tensor, Tensor) else ()
        for i in range(len(parts)):
            modules[".".join(parts[:i])][".".join(parts[i:])] = tensor
    found = {name: tensors for name, tensors in modules.items() if kind_of(tensors)}
    # BatchNorms that share the weight and bias of the module around them, as in detectron2's
    # CycleBatchNormList, get these, unless they are the model's ``own``.
    for name, tensors in found.items():
        parent = name.rpartition(".")[0]
        around = modules[parent] if name else {}
        shared = [k for k in ("weight", "bias") if k in around and _join(parent, k) not in own]
        shape = tensors["running_mean"].shape if kind_of(tensors) == "BN" else None
        if len(shared) == 2 and all(around[key].shape == shape for key in shared):
            found[name] = {**{key: around[key] for key in shared}, **tensors}
    return found


def _normalizer_of(norm: nn.Module) -> str | None:
    """Return the normalizer "IN", "LN" or "BN" that a plain norm computes; None for any other."""
    if groups := getattr(norm, "num_groups", None):
        return {norm.num_channels: "IN", 1: "LN"}.get(groups)
    return {"IN": "IN", "BN": "BN"}.get(norms.family(norm))


def _convert_norm(
    state: dict,
    report: Report,
    source: str,
    tensors: State,
    name: str,
    build: Callable[[State], nn.Module],
) -> None:
    """Convert the tensors of the norm ``source`` by ``build``, and store them under ``name``."""
    kind = kind_of(tensors)
    try:
        layer = build(tensors)
        new = rules.adapt(tensors, kind, layer)
    except (NotConvertible, OptionError) as error:
        report.left[source] = str(error)
        return
    for key, tensor in tensors.items():
        for holder in (source, source.rpartition(".")[0]):  # which has the weight of all levels
            if state.get(_join(holder, key)) is tensor:
                del state[_join(holder, key)]
    state.update({_join(name, key): tensor for key, tensor in new.items()})
    report.converted[name] = f"{kind} -> {type(layer).__name__}"
    report.note(rules.INEXACT.get((kind, norms.kind_of_module(layer))), name)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _names(name: str) -> Iterator[str]:
    """Yield a norm's name, then other names it may have in a state dict of timm or OpenMMLab."""
    yield name
    yield name.removesuffix(".0")  # timm's norm with an activation, before conversion
    if found := re.fullmatch(r"(.*\.|)(bn|gn|in)(\d*)", name):
        # "agn" is the name of AN in its authors' code.
        yield from (f"{found[1]}{kind}{found[3]}" for kind in ("bn", "gn", "in", "agn"))


def _channels(state: State) -> int:
    if "weight_" in state:  # (K, C)
        return state["weight_"].shape[1]
    return next(state[n].numel() for n in ("running_mean", "weight_bias", "weight") if n in state)
