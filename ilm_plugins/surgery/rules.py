"""Rules that make a norm's tensors from another norm's tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import AttentiveNorm, ExemplarNorm, SparseSwitchNorm, SwitchNorm
from ..layers.attentive import balanced
from ..layers.autoencoder import AutoencoderNorm
from ..layers.mixture import BN_VARIANCE, VARIANCE
from .norms import KEYS, key_of
from .plain_norms import PLAIN_NORMS, PlainNorm

#: A state dict, of a model or of a single norm: name -> tensor.
State = Mapping[str, Tensor]


class Refused(Exception):
    """A norm stays as it is; the message has the reason."""


#: The weight and bias of a norm.
AFFINE = {"weight", "bias"}
BN_RUNNING = {"running_mean", BN_VARIANCE}
#: The variance of the papers' released SN and SSN has BatchNorm's name.
MIXTURES_RUNNING = {*BN_RUNNING, VARIANCE}
_DECODERS = ("decode_mean.weight", "decode_var.weight")
_ATTENTION = "attention.weight", "attention.bias"
_PAIRS = "pairs.weight", "pairs.bias"
RELEASED_ATTENTION = "attention_weights.attention.0.weight", "attention_weights.attention.0.bias"


# The functions of the rules, see Rule.


def _gn_to_ilm(tensors: State, layer: AutoencoderNorm) -> State:
    if not layer.has_papers_form:
        raise Refused("a variant of the layer cannot compute a plain norm")
    half = torch.full_like(layer.omega_offset, 0.5)
    return {**_zeros(layer, *_DECODERS), "omega_offset": half, **tensors}


def _ilm_to_gn(tensors: State, layer: nn.Module) -> State:
    depends = any(tensors[name].any() for name in tensors if name.startswith("decode_"))
    depends |= bool(tensors["omega_offset"] != 0.5)
    if depends:
        raise Refused("its scale and shift depend on the input: the decoders are not zero")
    return tensors


def _gn_to_an(tensors: State, layer: AttentiveNorm) -> State:
    """Attentions of 1/2; the rows of ``pairs`` keep the differences that they have in the layer."""
    maps = layer.pairs.weight.detach(), layer.pairs.bias.detach()
    pairs = {name: balanced(m, i) for name, m, i in zip(_PAIRS, maps, (1, 0), strict=True)}
    return {**_zeros(layer, *_ATTENTION), **pairs, **tensors}


def _an_to_gn(tensors: State, layer: nn.Module) -> State:
    if tensors["attention.weight"].any():
        raise Refused("its scale and shift depend on the input: the attention's weight is not zero")
    attentions = nn.functional.hardsigmoid(tensors["attention.bias"].double())
    scale, shift = (attentions @ tensors[name].double() for name in _PAIRS)
    return {"weight": tensors["weight"] * scale, "bias": tensors["bias"] * scale + shift}


def _released_to_an(tensors: State, layer: AttentiveNorm) -> State:
    k, channels = tensors["weight_"].shape
    if k != layer.num_affine:
        raise Refused(f"{k} affine pairs, {layer.num_affine} in the layer; set num_affine={k}")
    maps, map_bias = (tensors[name] for name in RELEASED_ATTENTION)
    ones = tensors["weight_"].new_ones(channels)  # the released layer's GN has no weight and bias
    made = maps.reshape(k, channels), map_bias, tensors["weight_"], tensors["bias_"]
    new = dict(zip((*_ATTENTION, *_PAIRS), made, strict=True))
    return {"weight": ones, "bias": torch.zeros_like(ones), **new}


def _released_to_ilm(tensors: State, layer: AutoencoderNorm) -> State:
    # fc_weight maps the variance to the scale, fc_bias the mean to the shift. A shorter embedding
    # is padded with components that the decoders ignore.
    if not layer.has_papers_form:
        raise Refused(f"a released ILM layer does not become this {type(layer).__name__}")
    encode, channels = tensors["fc_embed.0.weight"], tensors["weight_bias"].numel()
    hidden, keys = encode.shape
    size, given = channels // keys, channels // layer.num_key_groups
    if size != given:
        raise Refused(f"key groups of {size} channels, of {given} in the layer; set the same size")
    if hidden > layer.hidden:
        raise Refused(f"an embedding of {hidden}, {layer.hidden} in the layer; set hidden={hidden}")
    state = {"weight": tensors["weight_bias"].flatten(), "bias": tensors["bias_bias"].flatten()}
    state["encode.weight"] = torch.cat((encode, layer.encode.weight[hidden:].to(encode)))
    for name, released in zip(_DECODERS, ("fc_bias.1.weight", "fc_weight.1.weight"), strict=True):
        state[name] = nn.functional.pad(tensors[released], (0, layer.hidden - hidden))
    return state | _zeros(layer, "omega_offset")


def _bn_to_en(tensors: State, layer: ExemplarNorm) -> State:
    """Ratios of 1/K; BN's row of the weight is K times BN's weight, the other rows are zero."""
    if "BN" not in layer.normalizers:
        raise Refused("the layer cannot compute BN; add BN to normalizers")
    k, row = len(layer.normalizers), layer.normalizers.index("BN")
    state = {**tensors, **_zeros(layer, "ratio.weight", "ratio.bias")}
    for name in AFFINE:
        value = tensors[name]
        state[name] = value.new_zeros(k, len(value))
        state[name][row] = k * value if name == "weight" else value
    return state


def _en_to_bn(tensors: State, layer: nn.Module) -> State:
    """BN's row must be the last: its K-th part is the weight, the sum of all rows the bias."""
    weight, bias = tensors["weight"], tensors["bias"]
    if "running_mean" not in tensors or weight.dim() != 2:
        raise Refused("EN without BN, or with a shared weight and bias, cannot compute BN")
    others = tensors["ratio.weight"], tensors["ratio.bias"], weight[:-1]
    if any(tensor.any() for tensor in others):
        raise Refused("its ratios depend on the input, or it uses more than BN")
    return {**tensors, "weight": weight[-1] / len(weight), "bias": bias.sum(0)}


def _released_to_sn(tensors: State, layer: SwitchNorm) -> State:
    k = tensors["mean_weight"].numel()
    without_in = k == 2 and "running_mean" in tensors  # SwitchNorm1d
    normalizers = ("LN", "BN") if without_in else ("IN", "LN", "BN")[:k]
    if layer.normalizers != normalizers:
        raise Refused(f"{k} ratios, for {normalizers}; set normalizers={normalizers}")
    return {name: tensor.flatten() for name, tensor in tensors.items()}


def _sn_to_ssn(tensors: State, layer: SparseSwitchNorm) -> State:
    """SN's ratios as logits, at radius 0: projecting ratios onto the simplex keeps them."""
    return {**tensors, **{name: tensors[name].softmax(0) for name in ("mean_weight", "var_weight")}}


def _released_to_ssn(tensors: State, layer: SparseSwitchNorm) -> State:
    """That code stores whether ratios are fixed; the largest logit tells which ratio is then 1."""
    state = dict(_released_to_sn(tensors, layer))
    for part in ("mean", "var"):
        logits = state[f"{part}_weight"]
        one_hot = torch.arange(len(logits), device=logits.device) == logits.argmax()
        state[f"{part}_fixed"] = (one_hot & (state[f"{part}_fixed"] != 0)).to(logits)
    return state


def _released_sn_to_ssn(tensors: State, layer: SparseSwitchNorm) -> State:
    return _sn_to_ssn(_released_to_sn(tensors, layer), layer)


def _ssn_to_plain(tensors: State, layer: nn.Module) -> State:
    """The layer must be the plain norm that the SSN's fixed ratios choose."""
    row = _fixed_row(tensors["mean_fixed"])
    if row is None or row != _fixed_row(tensors["var_fixed"]):
        raise Refused("its ratios are not fixed on one normalizer for both means and variances")
    return tensors


def _fixed_row(fixed: Tensor) -> int | None:
    """Return the index of an SSN's ratio that is fixed on 1; None if no ratio is fixed."""
    # In an average of models there may be fractions, which the layer does not use as ratios.
    is_fixed = fixed.count_nonzero() == 1 and fixed.sum() == 1
    return int(fixed.argmax()) if is_fixed else None


def chosen_by(state: State, normalizers: Sequence[str] = ("IN", "LN", "BN")) -> str | None:
    """Return the normalizer that an SSN's fixed ratios of the means choose; None for any other."""
    fixed = state.get("mean_fixed")
    if fixed is None or fixed.is_meta or fixed.layout != torch.strided:
        return None
    row = _fixed_row(fixed)
    if row is None:
        return None
    return normalizers[row] if row < len(normalizers) else "another normalizer"


def _unchanged(tensors: State, layer: nn.Module) -> State:
    return tensors


def _zeros(layer: nn.Module, *names: str) -> dict[str, Tensor]:
    state = layer.state_dict()
    return {name: torch.zeros_like(state[name]) for name in names}


@dataclass(frozen=True)
class Rule:
    """How norms of one kind become others.

    Attributes:
        kind: a key of PLAIN_NORMS or LAYOUTS, or "released ..." for the papers' code.
        to: keys of NORMS or PLAIN_NORMS.
        function: takes a norm's tensors and the new layer, which it does not change, and returns
            the layer's tensors that the norm determines; it raises Refused if the layer
            would compute another function.
        changes: what changes for the user; None if outputs stay the same.
    """

    kind: str
    to: tuple[str, ...]
    function: Callable[[State, Any], State]
    changes: str | None = None


_ILM = "ILMGN", "ILMLN", "ILMIN"
_BY_AUTOENCODER = *_ILM, "AssocNorm"
_KEPT = "weight and bias are kept; train the model further"
_NOT_OF_BATCH = (
    f"outputs change: each image's own statistics take the place of BatchNorm's; {_KEPT}"
)
_NOT_OF_PIXEL = f"outputs change: each image's statistics take the place of each pixel's; {_KEPT}"
_BY_N = "the released code divides variances by n - 1, this layer by n: outputs are not quite equal"
_MIXES = "mixes other statistics with BN's: outputs change; train the model further"

#: A layer replaces the plain norm of its first rule unless another is asked for.
RULES = (
    Rule("GN", ("ILMGN", "ILMLN", "AssocNorm"), _gn_to_ilm),
    Rule("GN", ("AN",), _gn_to_an),
    Rule("IN", ("ILMIN",), _gn_to_ilm),
    Rule("BN", ("EN",), _bn_to_en),
    Rule("BN", ("SN",), _unchanged, f"SN {_MIXES}"),
    Rule("BN", ("SSN",), _unchanged, f"SSN {_MIXES}"),
    Rule("BN", _BY_AUTOENCODER, _gn_to_ilm, _NOT_OF_BATCH),
    Rule("BN", ("AN",), _gn_to_an, _NOT_OF_BATCH),
    Rule("LN", _BY_AUTOENCODER, _gn_to_ilm, _NOT_OF_PIXEL),
    Rule("SN", ("SSN",), _sn_to_ssn),
    Rule("released ILM", _ILM, _released_to_ilm, _BY_N),
    Rule("released SN", ("SN",), _released_to_sn, _BY_N),
    Rule("released SN", ("SSN",), _released_sn_to_ssn, _BY_N),
    Rule("released SSN", ("SSN",), _released_to_ssn, _BY_N),
    Rule("released AN", ("AN",), _released_to_an, _BY_N),
    # Back to plain norms.
    Rule("ILM", ("GN", "IN"), _ilm_to_gn),
    Rule("EN", ("BN",), _en_to_bn),
    Rule("SSN", ("BN", "GN", "IN"), _ssn_to_plain),
    Rule("AN", ("GN",), _an_to_gn),
)


def replaced_by(layer: type[nn.Module]) -> list[PlainNorm]:
    """Return the plain norms that a layer can replace, by default the first; may be empty."""
    kinds = (rule.kind for rule in RULES if KEYS.get(layer) in rule.to)
    return [PLAIN_NORMS[kind] for kind in kinds if kind in PLAIN_NORMS]


def has_rule(kind: str, cls: type[nn.Module]) -> bool:
    return any(rule.kind == kind and key_of(cls) in rule.to for rule in RULES)


def find_rule(kind: str, cls: type[nn.Module]) -> Rule:
    """Return the rule from a kind of norm to a class; raise Refused if there is none.

    For tensors that do not tell the norm, it is the first rule of such a norm.
    """
    key = key_of(cls)
    for rule in RULES:
        kinds = {rule.kind}
        if rule.kind in PLAIN_NORMS:
            kinds.add(PLAIN_NORMS[rule.kind].kind_in_state)
        if key in rule.to and kind in kinds:
            return rule
    raise Refused(f"{kind} does not become {cls.__name__}")


def reverts_to(kind: str, chosen: str | None = None) -> PlainNorm:
    """Return the plain norm that a kind of norm converts back to, or raise Refused."""
    names = [name for rule in RULES if rule.kind == kind for name in rule.to if name in PLAIN_NORMS]
    if not names:
        raise Refused(f"{kind} does not become a plain norm")
    name = chosen or names[0]
    if name == "LN":
        name = "GN"  # of one group
    if name not in names:
        raise Refused(f"its ratios are fixed on {name}, to which no rule leads")
    return PLAIN_NORMS[name]


def hint(plain_norm: PlainNorm | None, layer: type[nn.Module]) -> str:
    """Return how to ask for the replacement of a plain norm by a layer; "" if nobody can."""
    if plain_norm not in replaced_by(layer)[1:]:
        return ""
    name = plain_norm.name
    return (
        f"; give --replacing {name}, or replacing={name!r} in Python, to replace it; outputs then "
        "change"
    )
