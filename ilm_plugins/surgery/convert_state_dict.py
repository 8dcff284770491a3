"""Convert the norms of a state dict."""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.state_dict_for_model import find_absent, unwrap_state
from ..checkpoints.state_dict_in_file import copy_state
from ..foreign_norms import NAME_REMARKS, OTHER_NAMES
from ..layers import OptionError
from . import norms, rules
from .adapt_tensors import adapt, first_computable
from .checks import reason_of_levels
from .conversion import Conversion, conversion_to
from .norms_in_state_dict import PLAIN, StoredNorm, find_norms, is_of_level, join
from .plain_norms import PLAIN_NORMS, UNTOLD, plain_module
from .report import Report, warn_of_nothing
from .rules import Refused, State, chosen_by
from .selection import Match, matches, report_of_match

#: Builds the new norm for a stored norm; raises Refused if no layer fits it.
Build = Callable[[StoredNorm], nn.Module]
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
    Names stay; :func:`fit_state` renames norms as OpenMMLab and timm do.

    Args:
        state: names -> tensors; not changed.
        match, to, replacing, options: see :func:`convert`.

    Returns:
        The new state dict, which also has all other entries, and a report on each norm in it.

    Raises:
        OptionError: an argument is unknown, each norm determines the option, or ``match`` fits no
            norm of a state dict that has norms.
    """
    asked = conversion_to(to, replacing, options)
    layer = asked.layer
    defaults = {"num_groups": 1} if "num_groups" in asked.of_norm else {}

    def build(norm: StoredNorm) -> nn.Module:
        _check_replaced(norm, asked, replacing, match)
        tensors = norm.tensors
        stored = {"num_affine": len(tensors["weight_"])} if norm.kind == "released AN" else {}
        return layer(_channels(tensors), **defaults | stored | asked.options, dtype=_dtype(tensors))

    return _rewrite(state, match, build, asked.plain_norm.name)


def _check_replaced(
    norm: StoredNorm, asked: Conversion, replacing: str | None, match: Match
) -> None:
    """Raise Refused unless a norm of a state dict is one that the conversion replaces."""
    kind, layer, plain_norm = norm.kind, asked.layer, asked.plain_norm
    if kind == norms.LAYERS[layer]:
        raise Refused(f"is {kind}, already a layer of this package")
    rules.find_rule(kind, layer)
    if kind in PLAIN and kind != plain_norm.kind_in_state:
        replaced = replacing or plain_norm.kind_in_state
        advice = rules.hint(PLAIN_NORMS.get(kind), layer)
        raise Refused(f"{kind}, but {replaced} is replaced{advice}")
    if kind == UNTOLD and match is None:
        raise Refused("a weight and a bias alone do not tell the norm; match its name, or '*'")
    if kind == UNTOLD and (lacking := rules.AFFINE - norm.tensors.keys()):
        advice = "convert the model, or fit the state dict to a model"
        raise Refused(f"it has no {', '.join(lacking)}, and may be no norm; {advice}")


def revert_state(state: State, *, match: Match = None) -> tuple[dict[str, Tensor], Report]:
    """Convert the layers of a state dict to plain norms, where they compute exactly the same.

    EN and SSN must have the normalizers IN, LN and BN, in this order. Other layers stay. For names
    see :func:`convert_state`.

    Args:
        state, match: see :func:`convert_state`.

    Returns:
        The new state dict, which also has all other entries, and a report on each layer in it.

    Raises:
        OptionError: ``match`` fits no norm of a state dict that has norms, plain ones included.
    """

    def build(norm: StoredNorm) -> nn.Module:
        """Return the plain norm for a layer's tensors; its eps and groups do not matter."""
        plain_norm = rules.reverts_to(norm.kind, chosen_by(norm.tensors))
        return plain_module(plain_norm, _channels(norm.tensors), dtype=_dtype(norm.tensors))

    return _rewrite(state, match, build, skip=PLAIN)


def fit_state(state: State, model: nn.Module) -> tuple[dict[str, Tensor], Report]:
    """Convert the norms of a state dict to the norms of a model.

    OpenMMLab names norms by their type: ``gn1`` of a model may be ``bn1`` in the state dict. timm's
    norms with an activation get the model's names, too.

    Args:
        state: names -> tensors, not changed; in the result, the prefixes "module." and "_orig_mod."
            of a wrapped model are removed.
        model: an untrained model, with plain norms or ours; not changed.

    Returns:
        A new state dict for ``model.load_state_dict(state, strict=False)``, and a report on missing
        tensors and on norms and tensors that do not fit; remove those of another shape.
    """
    state, report = rewriting = _Rewriting(unwrap_state(state, model), Report())
    named = model.named_modules(remove_duplicate=False)
    model_norms = {name: module for name, module in named if norms.is_norm(module)}
    stored = find_norms(state)
    # A norm takes no tensors that another norm of the model has under its own name, or has taken.
    taken = {*model_norms}
    for name, layer in model_norms.items():
        free = (n for n in _names(name, stored) if n in stored and (n == name or n not in taken))
        if (stored_name := next(free, None)) is not None:
            taken.add(stored_name)
            rewriting.fit(stored[stored_name], name, layer)
    wanted = model.state_dict()
    for key, tensor in state.items():
        if key not in wanted:
            report.left[key] = "the model has nothing of this name"
        elif isinstance(tensor, Tensor) and tensor.shape != wanted[key].shape:
            shapes = tuple(tensor.shape), tuple(wanted[key].shape)
            report.left[key] = "shape {}, where the model has shape {}".format(*shapes)
    report.missing = [key for key in find_absent(state, model) if key not in state]
    return state, report


class _Rewriting(NamedTuple):
    """A state dict whose norms are converted in place, and the report on them."""

    state: dict[str, Any]
    report: Report

    def fit(self, norm: StoredNorm, name: str, layer: nn.Module) -> None:
        """Convert a norm to a layer of this name in a model; rename a norm of the layer's kind."""
        chosen = chosen_by(norm.tensors)
        if norm.kind == norms.kind_in_state(layer):
            # A weight and a bias alone may be of any norm.
            if norm.name != name and norm.kind != UNTOLD and not norm.extra_tensors:
                self.store(norm, name, norm.tensors)
                self.report.converted[name] = "renamed"
        elif chosen not in (None, _normalizer_of(layer)):
            self.report.left[norm.name] = f"its ratios are fixed on {chosen}, which {layer} is not"
        else:
            self.convert(norm, name, norm.kind, lambda _: layer)

    def convert(self, norm: StoredNorm, name: str, kind: str, build: Build) -> nn.Module | None:
        """Convert a norm to what ``build`` returns, stored by name; None if it is refused."""
        try:
            layer = build(norm)
            if norm.extra_tensors:
                raise Refused(
                    f"it has {', '.join(norm.extra_tensors)} beside the tensors of {norm.kind}, "
                    "and may compute something else; if it does not, remove these entries"
                )
            if is_of_level(self.state, norm):
                raise Refused(reason_of_levels())
            rule = rules.find_rule(kind, type(layer))
            tensors = adapt(rule, norm.tensors, layer)
        except (Refused, OptionError) as error:
            self.report.left[norm.name] = str(error)
            return None
        self.store(norm, name, tensors)
        self.report.converted[name] = f"{norm.kind} -> {type(layer).__name__}"
        self.report.note(rule.changes, name)
        return layer

    def store(self, norm: StoredNorm, name: str, tensors: State) -> None:
        """Replace a norm's tensors by others, under a name."""
        for key, tensor in norm.tensors.items():
            # Else another norm has its place by now.
            if self.state.get(join(norm.name, key)) is tensor:
                del self.state[join(norm.name, key)]
        self.state.update({join(name, key): tensor for key, tensor in tensors.items()})


def _rewrite(
    state: State,
    match: Match,
    build: Build,
    plain: str | None = None,
    skip: Container[str] = (),
) -> tuple[dict[str, Tensor], Report]:
    """Convert the selected norms, plain ones as ``plain``; report none of the kinds in ``skip``."""
    stored = find_norms(state)
    state, report = rewriting = _Rewriting(copy_state(state), report_of_match(match, stored))
    for name, norm in stored.items():
        if matches(name, match) and norm.kind not in skip:
            kind = plain if plain and norm.kind in PLAIN else norm.kind
            layer = rewriting.convert(norm, name, kind, build)
            for remark_on in NAME_REMARKS if layer is not None else ():
                report.note(remark_on(name, isinstance(layer, nn.GroupNorm)), name)
    if report.converted:
        report.notes[_NOT_STORED] = []
    warn_of_nothing(report)
    return state, report


def _normalizer_of(norm: nn.Module) -> str | None:
    """Return the normalizer "IN", "LN" or "BN" that a plain norm computes; None for any other."""
    if groups := getattr(norm, "num_groups", None):
        return {norm.num_channels: "IN", 1: "LN"}.get(groups)
    name = norms.key_of(type(norm))
    return name if name in ("IN", "BN") else None


def _names(name: str, stored: Mapping[str, StoredNorm]) -> Iterator[str]:
    """Yield a norm's name, then other names that it may have in a state dict."""
    yield name
    yield name.removesuffix(".0")  # a norm with an activation inside, before conversion
    first, second = stored.get(f"{name}.0"), stored.get(f"{name}.1")
    if first and not (second and second.kind == first.kind):  # not a list of norms
        yield f"{name}.0"  # after conversion
    for other_names in OTHER_NAMES:
        yield from other_names(name)


def _dtype(tensors: State) -> torch.dtype | None:
    like = first_computable(tensors.values())
    return None if like is None else like.dtype


def _channels(state: State) -> int:
    if "weight_" in state:  # (K, C)
        return state["weight_"].shape[1]
    names = "running_mean", "weight_bias", "weight", "bias"
    return next(state[n].numel() for n in names if n in state)
