"""Constructor arguments: what is refused and how, defaults, names and shapes."""

import ast
import inspect
import math
import re

import pytest
import torch

import ilm_plugins
from cases import CASES, CHANNELS, every_layer, inputs
from ilm_plugins import (
    NORMS,
    AssocNorm,
    AttentiveNorm,
    ExemplarNorm,
    ILMGroupNorm,
    ILMInstanceNorm,
    ILMLayerNorm,
    SparseSwitchNorm,
    SwitchNorm,
)
from ilm_plugins.layers import OptionError, parse_norm
from ilm_plugins.layers.mixture import MixtureNorm


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: ILMGroupNorm(48), ["ILMGroupNorm", "num_groups=32", "48", "num_groups=8"]),
        (lambda: ILMGroupNorm(8, 8), ["key_group_size=16", "8", "key_group_size=8"]),
        (lambda: ILMGroupNorm(64, key_group_size=0), ["key_group_size=0", "key_group_size=16 for"]),
        (lambda: ILMInstanceNorm(24), ["ILMInstanceNorm", "key_group_size=16", "24"]),
        (lambda: ILMLayerNorm(12), ["ILMLayerNorm", "key_group_size=4 for"]),
        (lambda: ILMGroupNorm(64, hidden=0), ["hidden=0", "positive"]),
        (lambda: ILMGroupNorm(64, init="xavier"), ["init='xavier'", "'identity'"]),
        (lambda: ILMGroupNorm(64, activations=("tanh",)), ["activations", "two"]),
        (lambda: ILMGroupNorm(64, activations="tanh"), ["activations='tanh'", "two"]),
        (lambda: ILMGroupNorm(64, activations=3), ["activations=3", "two"]),
        (lambda: ILMGroupNorm(0), ["num_channels=0", "positive"]),
        (lambda: ILMInstanceNorm(-64), ["num_channels=-64", "positive"]),
        (lambda: ILMInstanceNorm(64, 32), ["eps=32", "above 0"]),
        (lambda: AssocNorm(0), ["num_channels=0", "positive"]),
        (lambda: ExemplarNorm(64, eps="a"), ["eps='a'", "above 0"]),
        (lambda: ILMGroupNorm(64, activations=("tanh", "gelu")), ["'gelu'", "'relu6'"]),
        (
            lambda: ILMGroupNorm(64, activations=("tanh", "tanh"), init="identity"),
            ["identity", "activations", "init='default'"],
        ),
        (lambda: AssocNorm(48, 16), ["AssocNorm", "num_key_groups=32", "num_key_groups=8"]),
        (lambda: AssocNorm(64, combine="W+B"), ["combine='W+B'", "'a(WE)+B'"]),
        (lambda: AssocNorm(64, combine="a(WE)", init="identity"), ["identity", "a(WE)+B"]),
        (lambda: ExemplarNorm(48), ["ExemplarNorm", "reduction=32", "48", "reduction=8"]),
        (lambda: ExemplarNorm(64, ratio_net="fc"), ["ratio_net='fc'", "'mlp'"]),
        (lambda: ExemplarNorm(64, activation="gelu"), ["activation='gelu'", "'relu'"]),
        (lambda: ExemplarNorm(64, expansion=0), ["expansion=0", "positive"]),
        (lambda: ExemplarNorm(64, momentum=None), ["momentum=None", "between 0 and 1"]),
        (lambda: SwitchNorm(64, momentum=True), ["momentum=True", "between 0 and 1"]),
        (lambda: ILMGroupNorm(64, eps=True), ["eps=True", "above 0"]),
        (lambda: SwitchNorm(64, eps=1e-50), ["eps=1e-50", "above 0", "float32"]),
        (lambda: ILMLayerNorm(64, eps=float("nan")), ["eps=nan", "above 0"]),
        (lambda: ExemplarNorm(64, shared_affine="False"), ["shared_affine='False'", "True, False"]),
        (lambda: ExemplarNorm(64, shared_affine=1), ["shared_affine=1", "True, False"]),
        (lambda: ILMGroupNorm(64, num_channels=3), ["num_channels=3", "num_channels=64", "leave"]),
        (lambda: ExemplarNorm(48, reduction=8, normalizers=("GN",)), ["num_groups=32", "48"]),
        (lambda: SparseSwitchNorm(64).set_radius(1.5), ["radius=1.5", "between 0 and 1"]),
        (lambda: SwitchNorm(64, normalizers=("IN", "XN")), ["'XN'", "'BN'"]),
        (lambda: SwitchNorm(64, normalizers=("IN", "IN")), ["normalizers", "once"]),
        (lambda: SwitchNorm(64, normalizers=()), ["normalizers", "empty"]),
        (lambda: SwitchNorm(64, normalizers="BN"), ["normalizers='BN'", "not a tuple"]),
        (lambda: SwitchNorm(64, normalizers=(["IN"],)), ["normalizers=['IN']", "unknown"]),
        (lambda: SwitchNorm(0), ["num_channels=0", "positive"]),
        (lambda: AttentiveNorm(48), ["AttentiveNorm", "num_groups=32", "48", "num_groups=8"]),
        (lambda: AttentiveNorm(64, num_affine=0), ["num_affine=0", "positive"]),
        (lambda: AttentiveNorm(64, init="normal"), ["init='normal'", "'identity'"]),
        (lambda: AttentiveNorm(64, eps=0), ["eps=0", "above 0"]),
    ],
)
def test_refused_options_say_the_numbers_and_the_mend(build, words):
    with pytest.raises(ValueError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


#: Every option that must divide the width, with the values that "auto" stands for at a width.
AUTOMATIC = {
    ILMGroupNorm: {"num_groups": 32, "key_group_size": 16},
    ILMInstanceNorm: {"key_group_size": 16},
    ILMLayerNorm: {"key_group_size": 16},
    AssocNorm: {"num_groups": 32, "num_key_groups": 32},
    ExemplarNorm: {"reduction": 32, "num_groups": 32},
    SwitchNorm: {"num_groups": 32},
}


@pytest.mark.parametrize("layer", AUTOMATIC)
@pytest.mark.parametrize("channels", [1, 3, 24, 36, 40, 64, 480])
def test_auto_fits_every_width(layer, channels):
    normalizers = {"normalizers": ("IN", "GN")} if issubclass(layer, MixtureNorm) else {}
    fitted = {option: math.gcd(most, channels) for option, most in AUTOMATIC[layer].items()}
    automatic = layer(channels, **dict.fromkeys(fitted, "auto"), **normalizers)
    assert repr(automatic) == repr(layer(channels, **fitted, **normalizers))
    x = torch.randn(2, channels, 3, 3)
    assert torch.isfinite(automatic(x)).all()


@pytest.mark.parametrize("layer", AUTOMATIC)
def test_auto_is_the_default_where_that_fits(layer):
    automatic = layer(64, **dict.fromkeys(AUTOMATIC[layer], "auto"))
    assert shapes_of(automatic) == shapes_of(layer(64)) and repr(automatic) == repr(layer(64))


def test_auto_in_what_does_not_use_it():
    assert ExemplarNorm(24, reduction="auto", ratio_net="no_conv").reduction == 8
    with pytest.raises(ValueError, match="reduction='automatic' does not divide"):
        ExemplarNorm(24, reduction="automatic")


#: Widths of MobileNetV2, of OCRNet on HRNet-W18, and of a DeepLabV3+ with 48 low-level channels.
WIDTHS = {
    "MobileNetV2": (32, 16, 96, 24, 144, 192, 64, 384, 576, 160, 960, 320, 1280),
    "OCRNet": (64, 18, 36, 72, 144, 270, 512, 256),
    "DeepLabV3+": (64, 256, 48, 512),
}


@pytest.mark.parametrize("layer", AUTOMATIC)
@pytest.mark.parametrize("model", WIDTHS)
@pytest.mark.parametrize("pick, most", [(0, 1), (1, 2)], ids=["auto", "numbers"])
def test_hints_that_are_followed_lead_to_a_model(layer, model, pick, most):
    """One round with "auto"; with numbers two at most, of multiples of 8 and of other widths."""
    options, rounds = {}, 0
    while True:
        try:
            for channels in WIDTHS[model]:
                layer(channels, **options)
            break
        except ValueError as error:
            hint = str(error).partition("; set ")[2].partition(", or ")[2 * pick]
            found = dict(re.findall(r'(\w+)=("auto"|\d+)', hint))
            options |= {name: ast.literal_eval(value) for name, value in found.items()}
            rounds += 1
        assert rounds <= most, options


def test_a_hint_names_what_other_widths_would_not_fit_either():
    with pytest.raises(ValueError) as caught:
        ILMGroupNorm(48)  # 16, the size of key groups, divides 48, but not 24
    assert str(caught.value) == (
        "ILMGroupNorm: num_groups=32 does not divide num_channels=48; "
        'set num_groups="auto" and key_group_size="auto" to follow each width, '
        "or num_groups=8 and key_group_size=8 for widths that are multiples of 8"
    )
    with pytest.raises(ValueError, match='set key_group_size="auto" to follow'):
        ILMGroupNorm(24, "auto")
    with pytest.raises(ValueError, match=r"or key_group_size=16 for .* multiples of 32"):
        ILMGroupNorm(64, key_group_size=7)  # num_groups=32 fits such widths


@every_layer
@pytest.mark.parametrize("shape", [(2, 49, 64), (2, 7, 7, 64)], ids=["tokens", "maps"])
def test_tokens_are_told(name, shape):
    layer, x = NORMS[name](64), torch.randn(shape)
    with pytest.raises(ValueError, match=r"tokens.*layer\(x.movedim\(-1, 1\)\).movedim\(1, -1\)"):
        layer(x)
    assert layer(x.movedim(-1, 1)).movedim(1, -1).shape == shape


@every_layer
def test_what_is_no_batch_or_no_dtype_is_told(name):
    for x in (torch.randn(64), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"expected \(N, 64, \*\); add the dimension of the b"):
            NORMS[name](64)(x)
    with pytest.raises(ValueError, match=r"^\w+: dtype='float16' is not a torch.dtype; leave"):
        NORMS[name](64, dtype="float16")


@every_layer
def test_unknown_options_are_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown option 'group_count'; the options are .*eps"):
        NORMS[name](64, group_count=3)


@pytest.mark.parametrize("case", CASES)
def test_the_text_of_a_layer_constructs_its_like(case):
    layer = CASES[case][0]().eval()
    options = eval(f"dict({layer.extra_repr()})")
    again = type(layer)(**options).eval()
    assert again.extra_repr() == layer.extra_repr()
    again.load_state_dict(layer.state_dict())
    x = inputs(2, CHANNELS, 3, 3)
    torch.testing.assert_close(again(x), layer(x), rtol=0, atol=0)
    parameters = inspect.signature(type(layer)).parameters
    left_out = {n for n in parameters if n not in options and parameters[n].default is not False}
    assert left_out == {"device", "dtype"}


def test_signatures_show_every_option():
    shown = {
        layer: str(inspect.signature(layer).replace(return_annotation=inspect.Signature.empty))
        for layer in (ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm)
    }
    options = (
        "key_group_size: int | str = 16, activations: tuple[str, str] = ('tanh', 'sigmoid'), "
        "hidden: int | None = None, init: str = 'default', "
        "device: torch.device | str | None = None, dtype: torch.dtype | None = None)"
    )
    first = "(num_channels: int, "
    groups, eps = "num_groups: int | str = 32, ", f"eps: float = 1e-05, *, {options}"
    assert shown[ILMGroupNorm] == f"{first}{groups}{eps}"
    for layer in (ILMInstanceNorm, ILMLayerNorm):
        assert shown[layer] == f"{first}{eps}"
    for layer in (ExemplarNorm, SwitchNorm):
        assert list(inspect.signature(layer).parameters)[-5:] == [
            *("normalizers", "num_groups", "sync", "device", "dtype")
        ]


@every_layer
def test_input_of_another_shape_or_of_integers_is_refused(name):
    with pytest.raises(ValueError, match=r"expected \(N, 64, \*\)"):
        NORMS[name](64)(torch.zeros(2, 32, 4, 4))
    with pytest.raises(ValueError, match=r"int64, expected floating point"):
        NORMS[name](64)(torch.zeros(2, 64, 3, 3, dtype=torch.long))


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy", reason="needs numpy")
    assert ILMGroupNorm(np.int64(64), np.int64(8)).num_groups == 8
    assert SwitchNorm(64, momentum=np.float32(0.5)).momentum == 0.5
    assert ExemplarNorm(np.int64(64))(torch.randn(2, 64, 3, 3)).isfinite().all()


def shapes_of(layer):
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_parameter_names_and_shapes():
    association = {
        "weight": (512,),
        "bias": (512,),
        "encode.weight": (2, 32),
        "decode_mean.weight": (32, 2),
        "decode_var.weight": (32, 2),
        "omega_offset": (),
    }
    for layer in (ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm, AssocNorm):
        assert shapes_of(layer(512)) == association
    assert shapes_of(ExemplarNorm(64)) == {
        "weight": (3, 64),
        "bias": (3, 64),
        "reduce.weight": (2, 32, 1),
        "expand.weight": (150, 9),
        "expand.bias": (150,),
        "ratio.weight": (3, 150),
        "ratio.bias": (3,),
        "running_mean": (64,),
        "running_var": (64,),
        "num_batches_tracked": (),
    }
    assert shapes_of(SwitchNorm(64)) == {
        "weight": (64,),
        "bias": (64,),
        "mean_weight": (3,),
        "var_weight": (3,),
        "running_mean": (64,),
        "running_var": (64,),
    }
    own = {"radius": (1,), "mean_fixed": (3,), "var_fixed": (3,)}
    assert shapes_of(SparseSwitchNorm(64)) == shapes_of(SwitchNorm(64)) | own
    assert shapes_of(AttentiveNorm(64)) == {
        "weight": (64,),
        "bias": (64,),
        "attention.weight": (10, 64),
        "attention.bias": (10,),
        "pairs.weight": (10, 64),
        "pairs.bias": (10, 64),
    }


@pytest.mark.parametrize(
    "channels, key_group_size, hidden", [(64, 16, 2), (512, 16, 2), (1024, 16, 4), (512, 1, 32)]
)
def test_length_of_the_embedding(channels, key_group_size, hidden):
    assert ILMGroupNorm(channels, key_group_size=key_group_size).hidden == hidden
    assert ILMGroupNorm(channels, hidden=7).encode.weight.shape[0] == 7


def test_initializations():
    torch.manual_seed(0)
    maps = "encode", "decode_mean", "decode_var"
    default, normal = ILMGroupNorm(2048), ILMGroupNorm(2048, init="normal")
    for weight in (getattr(default, name).weight for name in maps):
        bound = weight.shape[1] ** -0.5  # as nn.Linear's: uniform within 1 / sqrt(inputs)
        assert weight.abs().max() <= bound and weight.std() > 0.5 * bound
    for weight in (getattr(normal, name).weight for name in maps):
        assert abs(weight.std() - 1) < 0.15 and abs(weight.mean()) < 0.15
    reduce = ExemplarNorm(2048).reduce.weight
    bound = 1 / 32**0.5
    assert reduce.abs().max() <= bound and reduce.std() > 0.5 * bound
    identity = ILMGroupNorm(64, init="identity")
    assert identity.omega_offset == 0.5 and not identity.decode_var.weight.any()
    assert ILMGroupNorm(64).omega_offset == 0
    attentive = AttentiveNorm(2048)
    assert (attentive.weight == 1).all() and not attentive.bias.any()
    for rows, mean in ((attentive.pairs.weight, 1), (attentive.pairs.bias, 0)):
        assert abs(rows.mean() - mean) < 0.005 and abs(rows.std() - 0.1) < 0.005
    identity = AttentiveNorm(2048, init="identity").pairs
    for rows, total in ((identity.weight, 1), (identity.bias, 0)):
        assert (rows.double().sum(0) / 2 - total).abs().max() < 1e-7
        assert rows.std(0).mean() > 0.05


def test_public_names():
    functions = {"freeze", "get_config_file", "register", "set_radius", "use_backend"}
    assert set(ilm_plugins.__all__) - {"NORMS"} - functions == {
        layer.__name__ for layer in NORMS.values()
    }
    assert list(NORMS) == ["ILMGN", "ILMIN", "ILMLN", "AssocNorm", "EN", "SN", "SSN", "AN"]


@pytest.mark.parametrize("reduction", [None, 32.5, "any"])
def test_what_is_unused_may_have_any_value(reduction):
    layer = ExemplarNorm(64, ratio_net="no_conv", reduction=reduction)
    torch.testing.assert_close(
        layer(torch.ones(2, 64, 3, 3)), torch.zeros(2, 64, 3, 3), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("options", ["normalizers={[1]}", "eps=" + "-" * 3000 + "1"])
def test_options_that_are_no_literals_are_told(options):
    with pytest.raises(OptionError, match="cannot be read; write options by name"):
        parse_norm(f"EN({options})")
