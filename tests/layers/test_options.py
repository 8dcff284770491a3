"""Constructor arguments: what is refused and how, defaults, names and shapes."""

import ast
import inspect
import math
import re

import numpy
import pytest
import torch

from equations.cases import CASES, MIXTURES, inputs, randomized
from helpers.close import EQUAL, assert_close
from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers import OptionError, parse_call
from ilm_plugins.layers.mixture import MixtureNorm
from ilm_plugins.ops import Activation


@pytest.mark.parametrize("key", NORMS)
def test_numbers_of_numpy_become_plain_ones(key):
    """torch.compile makes a tensor of a number of numpy."""
    kinds = {int: numpy.int64, float: numpy.float64, bool: numpy.bool_}
    parameters = inspect.signature(NORMS[key]).parameters
    defaults = {
        name: kinds[type(p.default)](p.default)
        for name, p in parameters.items()
        if type(p.default) in kinds
    }
    fitted = {o: numpy.int64(most) for o, most in NORMS[key].fits_width.items()}
    defaults |= {option: most for option, most in fitted.items() if option in parameters}
    if "normalizers" in parameters:
        defaults["normalizers"] = ("BN", "GN")
    defaults.pop("sync", None)  # it may be a group of processes
    options = vars(NORMS[key](numpy.int64(64), **defaults)).values()
    assert not [value for value in options if isinstance(value, numpy.generic)]


@pytest.mark.parametrize("key", NORMS)
def test_a_number_of_channels_among_the_options_is_refused(key):
    """As in a yaml's NORM: "EN(num_channels=64)"; the model gives the number."""
    with pytest.raises(OptionError, match="num_channels is the model's; leave it out"):
        NORMS[key](64, num_channels=64)


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
        ("EN", {"eps": "1e-5"}, ["eps='1e-5' is no number above 0"]),
        ("EN", {"reduction": -4}, ["reduction=-4 does not divide"]),
        ("EN", {"momentum": None}, ["momentum=None", "between 0 and 1"]),
        ("SN", {"num_groups": 4.0, "normalizers": ["GN"]}, ["num_groups=4.0 is a float", '"auto"']),
        ("SN", {"normalizers": ("IN", "XN")}, ["'XN'", "'BN'"]),
        ("SN", {"normalizers": ("IN", "IN")}, ["normalizers", "different"]),
        ("SN", {"normalizers": "BN"}, ["normalizers='BN'", "not a tuple"]),
        *(
            (key, {"sync": sync}, [f"sync={sync!r} is no process group", "True, False"])
            for key in MIXTURES
            for sync in (0, 1, "False", 1.5, None)
        ),
    ],
)
def test_a_refusal_of_options_explains_itself(key, options, words):
    with pytest.raises(OptionError) as told:
        NORMS[key](64, **options)
    for word in (f"{NORMS[key].__name__}: ", *words):
        assert word in str(told.value)


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
def test_auto_is_the_default_and_fits_every_width(key):
    """As in MobileNet, EfficientNet or DeepLabV3+, whose widths are no multiples of 32."""
    layer = NORMS[key]
    for channels in (1, 3, 24, 36, 40, 48, 64, 304):
        normalizers = {"normalizers": ("IN", "GN")} if issubclass(layer, MixtureNorm) else {}
        fitted = {option: math.gcd(most, channels) for option, most in AUTOMATIC[key].items()}
        automatic = layer(channels, **dict.fromkeys(fitted, "auto"), **normalizers)
        assert repr(automatic) == repr(layer(channels, **fitted, **normalizers))
        assert repr(automatic) == repr(layer(channels, **normalizers))
        assert automatic(torch.randn(2, channels, 3, 3)).isfinite().all()


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


@pytest.mark.parametrize("key", NORMS)
def test_a_width_of_0_is_refused(key):
    name = NORMS[key].__name__
    with pytest.raises(OptionError, match=rf"^{name}: num_channels=0 is not a positive"):
        NORMS[key](0)


def test_the_repr_marks_a_number_that_is_smaller_than_the_papers():
    assert "reduction=16 (32 does not divide 48)" in repr(NORMS["EN"](48))
    assert "does not divide" not in repr(NORMS["EN"](64)) + repr(NORMS["EN"](64, reduction=16))


# ---- names, shapes, initial values


def shapes_of(layer):
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


AFFINE = {"weight": (64,), "bias": (64,)}
RUNNING = {"running_mean": (64,), "running_variance": (64,)}
AUTO_ENCODER = {
    **AFFINE,
    "encode.weight": (2, 4),
    "decode_mean.weight": (4, 2),
    "decode_var.weight": (4, 2),
    "omega_offset": (),
}
SWITCH = {**AFFINE, "mean_weight": (3,), "var_weight": (3,), **RUNNING}


@pytest.mark.parametrize(
    "key, options, expected",
    [
        ("ILMGN", {}, AUTO_ENCODER),
        ("ILMIN", {}, AUTO_ENCODER),
        ("ILMLN", {}, AUTO_ENCODER),
        ("AssocNorm", {"num_key_groups": 4}, AUTO_ENCODER),
        (
            "EN",
            {},
            {
                **{"weight": (3, 64), "bias": (3, 64), "reduce.weight": (2, 32, 1)},
                **{"expand.weight": (150, 9), "expand.bias": (150,)},
                **{"ratio.weight": (3, 150), "ratio.bias": (3,)},
                **RUNNING,
                "num_batches_tracked": (),
            },
        ),
        ("SN", {}, SWITCH),
        ("SSN", {}, {**SWITCH, "radius": (1,), "mean_fixed": (3,), "var_fixed": (3,)}),
        (
            "AN",
            {},
            {
                **AFFINE,
                **{"attention.weight": (10, 64), "attention.bias": (10,)},
                **{"pairs.weight": (10, 64), "pairs.bias": (10, 64)},
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_state_dict_has_the_names_that_checkpoints_have(key, options, expected):
    assert shapes_of(NORMS[key](64, **options)) == expected


@pytest.mark.parametrize("key", MIXTURES)
def test_without_bn_a_mixture_has_no_running_statistics(key):
    layer = NORMS[key](64, normalizers=("IN", "LN"))
    assert not {name for name, _ in layer.named_buffers()} & {*RUNNING, "num_batches_tracked"}


def test_the_ratios_of_exemplar_norm_start_equal():
    ratio = NORMS["EN"](2048, expansion=500).ratio
    assert not any(values.any() for values in ratio.parameters())


def layers_of_maps():
    auto_encoder, exemplar = NORMS["ILMGN"](2048), NORMS["EN"](2048, expansion=500)
    maps = auto_encoder.encode, auto_encoder.decode_mean, auto_encoder.decode_var
    return [*maps, exemplar.reduce, exemplar.expand, NORMS["AN"](2048, num_affine=500).attention]


def test_maps_start_uniform_as_nn_linears_do():
    """Within 1 / sqrt(inputs)."""
    for module, values in ((m, p) for m in layers_of_maps() for p in m.parameters()):
        bound = module.weight.shape[1] ** -0.5
        assert values.abs().max() <= bound
        assert values.std() > 0.5 * bound


def test_the_default_auto_encoder_has_8_hidden_units_for_128_key_groups():
    assert NORMS["ILMGN"](2048).hidden == 8


def test_the_default_auto_encoder_scales_by_omega_alone():
    assert NORMS["ILMGN"](64).omega_offset == 0


def test_init_identity_gives_a_scale_of_one_half_on_top():
    """sigmoid(0), which an offset takes off again."""
    layer = NORMS["ILMGN"](64, init="identity")
    layer.reset_parameters()
    assert layer.omega_offset == 0.5
    assert not layer.decode_var.weight.any()


@pytest.mark.parametrize("name, mean", [("weight", 1), ("bias", 0)])
def test_pairs_of_attentive_norm_start_normal(name, mean):
    rows = getattr(NORMS["AN"](2048).pairs, name)
    assert abs(rows.mean() - mean) < 0.005
    assert abs(rows.std() - 0.1) < 0.005


@pytest.fixture
def identity_pairs(name):
    return getattr(NORMS["AN"](2048, init="identity").pairs, name)


@pytest.mark.parametrize("name, mean", [("weight", 1), ("bias", 0)])
def test_pairs_of_init_identity_balance(identity_pairs, mean):
    """At equal attention, a half each, their sum is the identity."""
    assert (identity_pairs.double().sum(0) / 2 - mean).abs().max() < 1e-7


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_pairs_of_init_identity_differ(identity_pairs):
    assert identity_pairs.std(0).mean() > 0.05


# ---- NORM strings


@pytest.mark.parametrize(
    "norm, expected",
    [
        ("EN", ("EN", {})),
        (" EN ( reduction = 16 ) ", ("EN", {"reduction": 16})),
        ("SN(normalizers=('IN', 'BN'))", ("SN", {"normalizers": ("IN", "BN")})),
        ("GN", ("GN", {})),
    ],
)
def test_norm_strings(norm, expected):
    assert parse_call(norm) == expected


@pytest.mark.parametrize(
    "norm, key",
    [
        *(("SN(16)", "SN"), ("SN(momentum=f())", "SN"), (" SN(", "SN"), ("SN[1]", "SN")),
        *(("SN(**{})", "SN"), ("SN-x", "EN"), ("SNx(", "EN"), ("", "EN")),
    ],
)
def test_a_norm_string_that_cannot_be_read_is_told_with_an_example_of_its_key(norm, key):
    with pytest.raises(OptionError, match=rf'such as "{key}\(eps'):
        parse_call(norm)


def keywords(init):
    """The options by name of a constructor, with their defaults."""
    parameters = inspect.signature(init).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


@each_norm
def test_options_of_a_base_reach_it(norm):
    """A written-out constructor could forget to hand one on."""
    others = {"hidden": 3, "init": "identity", "normalizers": ("BN", "GN"), "num_groups": 8}
    others |= {"key_group_size": 8, "num_key_groups": 8, "reduction": 8, "dtype": torch.float64}
    given = {name: value for name, value in others.items() if name in keywords(norm.__init__)}
    for name, default in keywords(norm.__init__).items():
        if isinstance(default, bool):
            given[name] = not default
        elif isinstance(default, int | float) and name not in given:
            given[name] = default + 1
    layer = norm(64, **given)
    assert layer.weight.dtype == given.pop("dtype")
    assert {name: getattr(layer, name) for name in given} == given


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("ILMGN", "activations", ("relu", "tanh")),
        ("AssocNorm", "combine", "a(WE)*B"),
    ],
)
def test_a_variant_that_is_set_on_a_layer_that_has_run_is_computed(name, option, value):
    """Kernels know only the papers' equations."""
    layer, x = randomized(CASES[name][0]).eval(), inputs(2, 12, 5)
    before = layer(x)
    assert layer.describe() is not None
    setattr(layer, option, value)
    assert layer.describe() is None
    with use_backend("reference"):
        expected = layer(x)
    assert (expected - before).abs().max() > 1e-3
    assert_close(layer(x), expected, EQUAL)


@pytest.mark.parametrize(
    "value",
    ["silu", torch.nn.ReLU(), Activation("gelu"), Activation("leaky_relu", "0.1")],
    ids=repr,
)
def test_what_no_layer_applies_cannot_be_set(value):
    with pytest.raises(ValueError, match=r"^ILMGroupNorm: fused_activation=.*set None, or an"):
        NORMS["ILMGN"](64).fused_activation = value
