"""Constructor arguments: what is refused and how, defaults, names and shapes."""

import ast
import inspect
import math
import re

import pytest
import torch

from ilm_plugins import NORMS
from ilm_plugins.layers import OptionError, parse_norm
from ilm_plugins.layers.mixture import MixtureNorm


@pytest.mark.parametrize(
    "key, options, words",
    [
        ("ILMGN", {"hidden": 0}, ["ILMGroupNorm: hidden=0", "positive"]),
        ("ILMGN", {"init": "xavier"}, ["init='xavier'", "'identity'"]),
        ("ILMGN", {"activations": "tanh"}, ["activations='tanh'", "two"]),
        ("ILMGN", {"activations": ["tanh", "gelu"]}, ["'gelu'", "'relu6'"]),
        ("ILMGN", {"activations": ("tanh", "tanh"), "init": "identity"}, ["init='default'"]),
        ("ILMIN", {"eps": 32}, ["eps=32", "above 0"]),
        ("AssocNorm", {"combine": "W+B"}, ["combine='W+B'", "'a(WE)+B'"]),
        ("AssocNorm", {"combine": "a(WE)", "init": "identity"}, ["identity", "a(WE)+B"]),
        ("AN", {"eps": 0}, ["eps=0 is no number above 0"]),
        ("AN", {"init": "normal"}, ["init='normal'", "'identity'"]),
        ("EN", {"eps": "1e-5"}, ["eps='1e-5' is no number above 0"]),
        ("EN", {"expansion": 0}, ["expansion=0", "positive"]),
        ("EN", {"reduction": -4}, ["reduction=-4 does not divide"]),
        ("EN", {"ratio_net": "fc"}, ["ratio_net='fc'", "'mlp'"]),
        ("EN", {"activation": "gelu"}, ["activation='gelu'", "'relu'"]),
        ("EN", {"momentum": None}, ["momentum=None", "between 0 and 1"]),
        ("EN", {"momentum": "0.1"}, ["momentum='0.1' is no number between 0 and 1"]),
        ("SN", {"momentum": -0.1}, ["momentum=-0.1", "between 0 and 1"]),
        ("SN", {"num_groups": 4.0, "normalizers": ["GN"]}, ["num_groups=4.0 is a float", '"auto"']),
        ("SN", {"normalizers": ("IN", "XN")}, ["'XN'", "'BN'"]),
        ("SN", {"normalizers": ("IN", "IN")}, ["normalizers", "different"]),
        ("SN", {"normalizers": "BN"}, ["normalizers='BN'", "not a tuple"]),
        ("AN", {"num_affine": 0}, ["num_affine=0", "positive"]),
    ],
)
def test_refused_options_say_the_numbers_and_the_mend(key, options, words):
    with pytest.raises(OptionError) as told:
        NORMS[key](64, **options)
    assert all(word in str(told.value) for word in words), str(told.value)


#: Every option that must divide the width, with the values that "auto" stands for at most.
AUTOMATIC = {
    "ILMGN": {"num_groups": 32, "key_group_size": 16},
    "ILMIN": {"key_group_size": 16},
    "ILMLN": {"key_group_size": 16},
    "AssocNorm": {"num_groups": 32, "num_key_groups": 32},
    "AN": {"num_groups": 32},
    "EN": {"reduction": 32, "num_groups": 32},
    "SN": {"num_groups": 32},
}


@pytest.mark.parametrize("key", AUTOMATIC)
def test_a_string_in_place_of_an_integer_is_called_a_string(key):
    """As ``NORM: "EN(reduction='16')"`` gives it, whose value would divide the width."""
    layer = NORMS[key]
    normalizers = {"normalizers": ("IN", "GN")} if issubclass(layer, MixtureNorm) else {}
    for option in AUTOMATIC[key]:
        with pytest.raises(OptionError) as told:
            layer(64, **{option: "16"}, **normalizers)
        hint = f'set an integer, or {option}="auto"'
        assert str(told.value) == f"{layer.__name__}: {option}='16' is a str; {hint}"


@pytest.mark.parametrize("key", AUTOMATIC)
def test_auto_fits_every_width(key):
    layer = NORMS[key]
    for channels in (1, 3, 24, 36, 40, 64, 480):
        normalizers = {"normalizers": ("IN", "GN")} if issubclass(layer, MixtureNorm) else {}
        fitted = {option: math.gcd(most, channels) for option, most in AUTOMATIC[key].items()}
        automatic = layer(channels, **dict.fromkeys(fitted, "auto"), **normalizers)
        assert repr(automatic) == repr(layer(channels, **fitted, **normalizers))
        assert automatic(torch.randn(2, channels, 3, 3)).isfinite().all()
    assert repr(layer(64, **dict.fromkeys(fitted, "auto"))) == repr(layer(64))


@pytest.mark.parametrize("key", AUTOMATIC)
@pytest.mark.parametrize("pick, most", [(0, 1), (1, 2)], ids=["auto", "numbers"])
@pytest.mark.parametrize("widths", [(32, 16, 24, 1280), (64, 18, 270, 512), (64, 256, 48, 512)])
def test_hints_that_are_followed_lead_to_a_model(key, pick, most, widths):
    """One round with "auto"; with numbers two at most, of multiples of 8 and of other widths."""
    options, hint = {}, ""
    for _ in range(most + 1):
        options |= {n: ast.literal_eval(v) for n, v in re.findall(r'(\w+)=("auto"|\d+)', hint)}
        try:
            for channels in widths:
                NORMS[key](channels, **options)
            return
        except OptionError as error:
            hint = str(error).partition("; set ")[2].partition(", or ")[2 * pick]
    pytest.fail(f"{hint} after {options}")


def test_refused_widths_and_a_hint_for_those_that_would_not_fit_either():
    for key in ("ILMGN", "SN"):
        with pytest.raises(OptionError, match=r"num_channels=0 .*positive"):
            NORMS[key](0)
    # 16, the size of key groups, divides 48, but not 24.
    with pytest.raises(OptionError, match="num_groups=8 and key_group_size=8 for widths"):
        NORMS["ILMGN"](48)


# ---- names, shapes, initial values


def shapes_of(layer):
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_parameter_names_and_shapes():
    affine = {"weight": (64,), "bias": (64,)}
    maps = {"encode.weight": (2, 4), "decode_mean.weight": (4, 2), "decode_var.weight": (4, 2)}
    for layer in (NORMS["ILMGN"](64), NORMS["ILMIN"](64), NORMS["AssocNorm"](64, num_key_groups=4)):
        assert shapes_of(layer) == {**affine, **maps, "omega_offset": ()}
    running = {"running_mean": (64,), "running_variance": (64,)}
    assert shapes_of(NORMS["EN"](64)) == {
        **{"weight": (3, 64), "bias": (3, 64), "reduce.weight": (2, 32, 1)},
        **{"expand.weight": (150, 9), "expand.bias": (150,)},
        **{"ratio.weight": (3, 150), "ratio.bias": (3,)},
        **running,
        "num_batches_tracked": (),
    }
    assert not [*NORMS["EN"](64, normalizers=("IN", "LN")).buffers()]
    switch = {**affine, "mean_weight": (3,), "var_weight": (3,), **running}
    assert shapes_of(NORMS["SN"](64)) == switch
    own = {"radius": (1,), "mean_fixed": (3,), "var_fixed": (3,)}
    assert shapes_of(NORMS["SSN"](64)) == {**switch, **own}
    pairs = {"pairs.weight": (10, 64), "pairs.bias": (10, 64)}
    attention = {"attention.weight": (10, 64), "attention.bias": (10,)}
    assert shapes_of(NORMS["AN"](64)) == {**affine, **attention, **pairs}


def test_initializations():
    default, normal = NORMS["ILMGN"](2048), NORMS["ILMGN"](2048, init="normal")
    exemplar = NORMS["EN"](2048, expansion=500)
    assert not any(values.any() for values in exemplar.ratio.parameters())
    maps = default.encode, default.decode_mean, default.decode_var, exemplar.reduce, exemplar.expand
    for module, values in ((m, p) for m in maps for p in m.parameters()):
        bound = module.weight.shape[1] ** -0.5  # as nn.Linear's: uniform within 1 / sqrt(inputs)
        assert values.abs().max() <= bound and values.std() > 0.5 * bound
    for module in (normal.encode, normal.decode_mean, normal.decode_var):
        assert abs(module.weight.std() - 1) < 0.15 and abs(module.weight.mean()) < 0.15
    identity = NORMS["ILMGN"](64, init="identity")
    identity.reset_parameters()
    assert identity.omega_offset == 0.5 and not identity.decode_var.weight.any()
    assert default.omega_offset == 0 and default.hidden == 8
    attentive, identity = (NORMS["AN"](2048, init=init).pairs for init in ("default", "identity"))
    for name, mean in (("weight", 1), ("bias", 0)):
        rows, balanced = getattr(attentive, name), getattr(identity, name)
        assert abs(rows.mean() - mean) < 0.005 and abs(rows.std() - 0.1) < 0.005
        assert (balanced.double().sum(0) / 2 - mean).abs().max() < 1e-7
        assert balanced.std(0).mean() > 0.05


# ---- NORM strings


@pytest.mark.parametrize(
    "norm, expected",
    [
        ("EN", ("EN", {})),
        (" EN ( reduction = 16 ) ", ("EN", {"reduction": 16})),
        ("SN(normalizers=('IN', 'BN'))", ("SN", {"normalizers": ("IN", "BN")})),
        *((norm, None) for norm in ("GN", "ENx", "EN-x", "")),
    ],
)
def test_norm_strings(norm, expected):
    assert parse_norm(norm) == expected


@pytest.mark.parametrize("norm", ["EN(16)", "EN(reduction=f())", "EN(", "EN[1]", "EN(**{})"])
def test_norm_strings_that_cannot_be_read(norm):
    with pytest.raises(OptionError, match="such as"):
        parse_norm(norm)


def keywords(init):
    """The options by name of a constructor, with their defaults."""
    parameters = inspect.signature(init).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


@each_norm
def test_all_options_stand_in_the_constructor(norm):
    parameters = inspect.signature(norm.__init__).parameters.values()
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters)
    assert not hasattr(norm.__init__, "__signature__")


@each_norm
def test_options_of_a_base_have_its_defaults(norm):
    base = next(c for c in norm.__mro__[1:] if "__init__" in vars(c))
    own = keywords(norm.__init__)
    assert {name: own[name] for name in keywords(base.__init__)} == keywords(base.__init__)


@each_norm
def test_options_of_a_base_reach_it(norm):
    """A written-out constructor could forget to hand one on."""
    others = {"hidden": 3, "init": "normal", "normalizers": ("BN", "GN"), "num_groups": 8}
    others |= {"sync": True, "key_group_size": 8, "dtype": torch.float64}
    if norm is NORMS["AN"]:
        others["init"] = "identity"
    given = {name: value for name, value in others.items() if name in keywords(norm.__init__)}
    layer = norm(64, **given)
    assert layer.weight.dtype == given.pop("dtype")
    assert {name: getattr(layer, name) for name in given} == given
