"""Rules that make the tensors of one norm from those of another."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..layers import AttentiveNorm, ExemplarNorm, SparseSwitchNorm, SwitchNorm
from ..layers.attentive import balanced
from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm

#: A state dict, of a model or of a single norm: name -> tensor.
State = Mapping[str, Tensor]


class NotConvertible(Exception):
    """A layer cannot be converted and stays as it is; the message has the reason."""


_AFFINE = {"weight", "bias"}
_RUNNING = {"running_mean", "running_var"}
_DECODERS = ("decode_mean.weight", "decode_var.weight")
_SWITCH = _AFFINE | {"mean_weight", "var_weight"}
_ATTENTION = "attention.weight", "attention.bias"
_PAIRS = "pairs.weight", "pairs.bias"
_RELEASED_ATTENTION = "attention_weights.attention.0.weight", "attention_weights.attention.0.bias"
_RATIOS = {"expand.weight", "expand.bias", "ratio.weight", "ratio.bias"}

#: Kind of a norm -> names of its required tensors, and of its optional tensors.
LAYOUTS = {
    "GN or IN": (_AFFINE, set()),
    "BN": (_RUNNING, _AFFINE | {"num_batches_tracked"}),
    "ILM": (_AFFINE | {"encode.weight", *_DECODERS, "omega_offset"}, set()),
    "EN": (_AFFINE | _RATIOS, _RUNNING | {"reduce.weight", "num_batches_tracked"}),
    "SN": (_SWITCH, _RUNNING),
    "SSN": (_SWITCH | {"radius", "mean_fixed", "var_fixed"}, _RUNNING),
    "AN": (_AFFINE | {*_ATTENTION, *_PAIRS}, set()),
    "released ILM": (
        {"weight_bias", "bias_bias", "fc_embed.0.weight"}
        | {"fc_weight.1.weight", "fc_bias.1.weight"},
        # The released code stores the encoder under these names, too.
        {"fc_weight.0.0.weight", "fc_bias.0.0.weight"},
    ),
    "released AN": ({"weight_", "bias_", *_RELEASED_ATTENTION}, set()),
}


def kind_of(state: State) -> str | None:
    """Return the kind of norm that a norm's state dict belongs to, by its names and dimensions.

    The kind is a key of :data:`LAYOUTS`, "released SN", "released SSN" or "released AN with another
    norm" (from the papers' released code); None for any other state dict. The names in ``state``
    are those within the norm, such as "weight".
    """
    for kind, (needed, allowed) in LAYOUTS.items():
        if needed <= state.keys() <= needed | allowed:
            if kind in ("SN", "SSN") and state["weight"].dim() > 1:
                return f"released {kind}"
            plain = kind in ("GN or IN", "BN", "SN", "SSN")
            if plain and any(state[n].dim() != 1 for n in (needed | _AFFINE) & state.keys()):
                return None
            return kind
    if {"weight_", "bias_"} <= state.keys():
        return "released AN with another norm"  # BatchNorm, or one of the attention's logits
    return None


@torch.no_grad()
def adapt(source: State, layer: nn.Module) -> dict[str, Tensor]:
    """Convert the state dict of a norm to that of the layer which replaces it.

    Args:
        source: the norm's state dict.
        layer: the new layer; it is not changed.

    Returns:
        The layer's state dict; its tensors may be those of ``source``, not copies.

    Raises:
        NotConvertible: :data:`RULES` has no rule for the two, the layer would compute another
            function (unless the rule is in :data:`INEXACT`), or shapes differ.
    """
    wanted = layer.state_dict()
    rule = RULES.get((kind_of(source), kind_of(wanted)))
    if rule is None:
        raise NotConvertible(
            f"{kind_of(source) or sorted(source)} does not become {type(layer).__name__}"
        )
    new = rule(source, layer)
    for name in _AFFINE & new.keys() - wanted.keys():
        if new[name].is_meta or (new[name] != (name == "weight")).any():
            raise NotConvertible(f"it has a {name}, which {type(layer).__name__} lacks")
    new = {name: new[name] for name in wanted}
    for name, tensor in new.items():
        if tensor.shape != wanted[name].shape:
            raise NotConvertible(
                f"{name} has {shape_of(tensor)}, {shape_of(wanted[name])} in the layer"
            )
    return new


def _gn_to_ilm(source: State, layer: AutoencoderNorm) -> State:
    """Return an ILM layer's tensors for those of GN or IN: the same weights, and zero decoders.

    omega_offset is 1/2, and the other tensors are copies of the layer's own. AssocNorm has the same
    tensors. Raise NotConvertible if the layer's options never give a plain norm.
    """
    if not layer.has_papers_form:
        raise NotConvertible(f"{call_of(layer)} cannot compute a plain norm")
    state = _detached(layer)
    zeros = {name: torch.zeros_like(state[name]) for name in _DECODERS}
    return {**state, **zeros, "omega_offset": torch.full_like(state["omega_offset"], 0.5), **source}


def _ilm_to_gn(source: State, layer: nn.Module) -> State:
    """Return an ILM layer's tensors if it computes a plain norm; otherwise raise NotConvertible."""
    _check_values(source)
    if any(source[name].any() for name in _DECODERS) or source["omega_offset"] != 0.5:
        raise NotConvertible("its scale and shift depend on the input: the decoders are not zero")
    return source


def _gn_to_an(source: State, layer: AttentiveNorm) -> State:
    """Return an AN's tensors for those of GN: the same weights, and attentions of 1/2.

    The rows of ``pairs`` keep the differences that they have in the layer.
    """
    state = _detached(layer)
    zeros = {name: torch.zeros_like(state[name]) for name in _ATTENTION}
    pairs = {name: balanced(state[name], i) for name, i in zip(_PAIRS, (1, 0), strict=True)}
    return {**state, **zeros, **pairs, **source}


def _an_to_gn(source: State, layer: nn.Module) -> State:
    """Return the GN that an AN computes if its attentions do not depend on x.

    Otherwise raise NotConvertible. ``layer`` is not used.
    """
    _check_values(source)
    if source["attention.weight"].any():
        raise NotConvertible(
            "its scale and shift depend on the input: the attention's weight is not zero"
        )
    attentions = nn.functional.hardsigmoid(source["attention.bias"].double())
    scale, shift = (attentions @ source[name].double() for name in _PAIRS)
    weight, bias = source["weight"] * scale, source["bias"] * scale + shift
    return {"weight": weight.to(source["weight"]), "bias": bias.to(source["bias"])}


def _released_to_an(source: State, layer: AttentiveNorm) -> State:
    """Return the tensors of an AN of the authors' code, which has no weight and bias of GN."""
    k, channels = source["weight_"].shape
    if k != layer.num_affine:
        raise NotConvertible(
            f"{k} affine pairs, {layer.num_affine} in the layer; set num_affine={k}"
        )
    maps, map_bias = (source[name] for name in _RELEASED_ATTENTION)
    pairs = dict(zip(_PAIRS, (source["weight_"], source["bias_"]), strict=True))
    attention = dict(zip(_ATTENTION, (maps.reshape(k, channels), map_bias), strict=True))
    ones = source["weight_"].new_ones(channels)
    return {"weight": ones, "bias": torch.zeros_like(ones), **pairs, **attention}


def _released_to_ilm(source: State, layer: AutoencoderNorm) -> State:
    """Return an ILM layer's tensors for those of the papers' released code.

    The released layer's ``fc_weight`` maps the variance to the scale, its ``fc_bias`` the mean to
    the shift. A shorter embedding is padded with components that the decoders ignore.

    Args:
        source: the released layer's tensors.
        layer: the new layer; it is not changed.

    Raises:
        NotConvertible: the layer has another number of key groups or a shorter embedding
            (``hidden``), is not of the paper's form, or its mean does not drive beta.
    """
    if layer.mean_drives != "beta" or not layer.has_papers_form:
        raise NotConvertible(f"a released ILM layer does not become {call_of(layer)}")
    encode, channels = source["fc_embed.0.weight"], source["weight_bias"].numel()
    hidden, keys = encode.shape
    if keys != layer.num_key_groups:
        raise NotConvertible(
            f"{keys} key groups, {layer.num_key_groups} in the layer; "
            f"set key_group_size={channels // keys}"
        )
    if hidden > layer.hidden:
        raise NotConvertible(
            f"an embedding of {hidden}, {layer.hidden} in the layer; set hidden={hidden}"
        )
    state = _detached(layer)
    state["weight"], state["bias"] = source["weight_bias"].flatten(), source["bias_bias"].flatten()
    state["encode.weight"] = torch.cat((encode, state["encode.weight"][hidden:].to(encode)))
    for name, released in zip(_DECODERS, ("fc_bias.1.weight", "fc_weight.1.weight"), strict=True):
        state[name] = nn.functional.pad(source[released], (0, layer.hidden - hidden))
    state["omega_offset"] = torch.zeros_like(state["omega_offset"])
    return state


def _bn_to_en(source: State, layer: ExemplarNorm) -> State:
    """Return tensors with which an EN of K normalizers computes the same as a BN.

    All ratios are 1/K. BN's row of the weight is K times BN's weight, BN's row of the bias is BN's
    bias as it is, and the other rows are zero.

    Args:
        source: the BN's tensors; weight and bias are optional.
        layer: the EN, which is not changed; tensors that BN does not determine are copies of its.

    Raises:
        NotConvertible: the EN's normalizers lack BN, or all of them share one weight and bias.
    """
    if "BN" not in layer.normalizers or layer.shared_affine:
        raise NotConvertible(
            f"{call_of(layer)} cannot compute BN; add BN to normalizers, set shared_affine=False"
        )
    k, row = len(layer.normalizers), layer.normalizers.index("BN")
    state = {**_detached(layer), **source}
    for name, value in _affine_of_bn(source).items():
        state[name] = value.new_zeros(k, len(value))
        state[name][row] = k * value if name == "weight" else value
    zeros = {name: torch.zeros_like(state[name]) for name in ("ratio.weight", "ratio.bias")}
    return {**state, **zeros}


def _en_to_bn(source: State, layer: nn.Module) -> State:
    """Return BN's tensors for those of an EN whose last normalizer is BN.

    The weight is the last row over the number of normalizers, the bias the sum of all rows. The
    number of batches is that of ``layer`` if ``source`` has none.

    Raises:
        NotConvertible: the EN has no running statistics or one weight for all normalizers, its
            ratios are not uniform, another normalizer has a weight other than zero, or the tensors
            are on the meta device.
    """
    _check_values(source)
    weight, bias = source["weight"], source["bias"]
    if "running_mean" not in source or weight.dim() != 2:
        raise NotConvertible("EN without BN, or with a shared weight and bias, cannot compute BN")
    if source["ratio.weight"].any() or source["ratio.bias"].any() or weight[:-1].any():
        raise NotConvertible("its ratios depend on the input, or it uses more than BN")
    own = {"weight": weight[-1] / len(weight), "bias": bias.sum(0)}
    return {**_detached(layer), **source, **own}


def _bn_to_sn(source: State, layer: SwitchNorm) -> State:
    """Return SN's tensors for those of BN: only weight, bias and running statistics are BN's."""
    return {**_detached(layer), **_affine_of_bn(source), **source}


def _released_to_sn(source: State, layer: SwitchNorm) -> State:
    """Return the tensors of an SN of the papers' released code, each flattened to one dimension.

    Raise NotConvertible unless the layer has its normalizers: IN, LN and BN, in this order; without
    IN in SwitchNorm1d, and without BN where there are no running statistics.
    """
    k = source["mean_weight"].numel()
    without_in = k == 2 and "running_mean" in source
    normalizers = ("LN", "BN") if without_in else ("IN", "LN", "BN")[:k]
    if layer.normalizers != normalizers:
        raise NotConvertible(f"{k} ratios, for {normalizers}; set normalizers={normalizers}")
    return {name: tensor.flatten() for name, tensor in source.items()}


def _sn_to_ssn(source: State, layer: SparseSwitchNorm) -> State:
    """Return SSN's tensors for those of SN: its logits are SN's ratios, and the radius is 0.

    Ratios are their own projection onto the simplex. Raise NotConvertible if logits are NaN or
    infinite.
    """
    state = {**_detached(layer), **source}
    for name in ("mean_weight", "var_weight"):
        if not source[name].is_meta and not source[name].isfinite().all():
            raise NotConvertible(f"{name} has NaN or infinite logits, which give no ratios")
        state[name] = source[name].softmax(0)
    zeros = ("radius", "mean_fixed", "var_fixed")
    return {**state, **{name: torch.zeros_like(state[name]) for name in zeros}}


def _released_to_ssn(source: State, layer: SparseSwitchNorm) -> State:
    """Return the tensors of an SSN of the papers' released code, each flattened to one dimension.

    That code stores whether ratios are fixed; the largest logit tells which ratio is then 1. Raise
    NotConvertible as :func:`_released_to_sn` does.
    """
    state = dict(_released_to_sn(source, layer))
    for part in ("mean", "var"):
        logits = state[f"{part}_weight"]
        one_hot = torch.arange(len(logits), device=logits.device) == logits.argmax()
        state[f"{part}_fixed"] = (one_hot & (state[f"{part}_fixed"] != 0)).to(logits)
    state["radius"] = state["radius"].to(state["mean_weight"])
    return state


def _ssn_to_plain(source: State, layer: nn.Module) -> State:
    """Return a plain norm's tensors for those of an SSN whose fixed ratios choose that norm.

    Args:
        source: the SSN's tensors.
        layer: the plain norm that the SSN's fixed ratios choose; not changed.

    Raises:
        NotConvertible: the ratios are not fixed, means and variances are of two normalizers, or
            the tensors are on the meta device.
    """
    _check_values(source)
    if not source["mean_fixed"].any() or not torch.equal(source["mean_fixed"], source["var_fixed"]):
        raise NotConvertible(
            "its ratios are not fixed on one normalizer for both means and variances"
        )
    return {**_detached(layer), **source}


def _affine_of_bn(source: State) -> State:
    """Return weight and bias of a BN; ones and zeros if it has none."""
    mean = source["running_mean"]
    return {
        "weight": source["weight"] if "weight" in source else torch.ones_like(mean),
        "bias": source["bias"] if "bias" in source else torch.zeros_like(mean),
    }


def call_of(layer: AdaptiveNorm) -> str:
    """Return the call that constructs a layer, on one line."""
    return f"{type(layer).__name__}({layer.extra_repr()})"


def _detached(layer: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a layer's state dict."""
    return {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}


def _check_values(state: State) -> None:
    """Raise NotConvertible for tensors on the meta device, which have no values to check."""
    if any(tensor.is_meta for tensor in state.values()):
        raise NotConvertible("its tensors are on the meta device, without values to check")


#: (old kind, new kind) -> function of the old state dict and the new layer, which returns the new
#: layer's tensors.
RULES: dict[tuple[str, str], Callable[[State, nn.Module], State]] = {
    ("GN or IN", "ILM"): _gn_to_ilm,
    ("ILM", "GN or IN"): _ilm_to_gn,
    ("BN", "ILM"): lambda source, layer: _gn_to_ilm(_affine_of_bn(source), layer),
    ("GN or IN", "AN"): _gn_to_an,
    ("AN", "GN or IN"): _an_to_gn,
    ("released AN", "AN"): _released_to_an,
    ("BN", "AN"): lambda source, layer: _gn_to_an(_affine_of_bn(source), layer),
    ("BN", "EN"): _bn_to_en,
    ("EN", "BN"): _en_to_bn,
    ("BN", "SN"): _bn_to_sn,
    ("released ILM", "ILM"): _released_to_ilm,
    ("released SN", "SN"): _released_to_sn,
    ("BN", "SSN"): _bn_to_sn,
    ("SN", "SSN"): _sn_to_ssn,
    ("released SN", "SSN"): lambda source, layer: _sn_to_ssn(_released_to_sn(source, layer), layer),
    ("released SSN", "SSN"): _released_to_ssn,
    ("SSN", "BN"): _ssn_to_plain,
    ("SSN", "GN or IN"): _ssn_to_plain,
}

#: The option with which ILM layers, AssocNorm and AN replace BatchNorm.
OF_BN = "give replacing='BN' to replace it; outputs then change"
_UNBIASED = (
    "the released code divides variances by n - 1, this layer by n: outputs are not quite equal"
)
OWN_STATISTICS = (
    "outputs change: each image's own statistics take the place of BatchNorm's; weight and "
    "bias are kept; train the model on"
)
#: Rules that change a norm's outputs -> how they change.
INEXACT = {
    ("BN", "ILM"): OWN_STATISTICS,
    ("BN", "AN"): OWN_STATISTICS,
    ("BN", "SN"): "SN mixes other statistics with BN's: outputs differ until it is trained",
    ("BN", "SSN"): "SSN mixes other statistics with BN's: outputs differ until it is trained",
    ("released ILM", "ILM"): _UNBIASED,
    ("released AN", "AN"): _UNBIASED,
    ("released SN", "SN"): _UNBIASED,
    ("released SN", "SSN"): _UNBIASED,
    ("released SSN", "SSN"): _UNBIASED,
}


def describe_change(source: State, layer: nn.Module) -> str | None:
    """Return how outputs change when a layer replaces a norm; None if they stay the same."""
    return INEXACT.get((kind_of(source), kind_of(layer.state_dict())))


def shape_of(tensor: Tensor) -> str:
    """Return a tensor's shape for a message, such as "shape (64,)"."""
    return f"shape {tuple(tensor.shape)}"
