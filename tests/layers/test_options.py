"""Constructor arguments: what is refused and how, defaults, names and shapes."""

import inspect

import pytest
import torch

import ilm_plugins
from cases import every_layer
from ilm_plugins import (
    NORMS,
    AssocNorm,
    ExemplarNorm,
    ILMGroupNorm,
    ILMInstanceNorm,
    ILMLayerNorm,
    SparseSwitchNorm,
    SwitchNorm,
)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: ILMGroupNorm(48), ["ILMGroupNorm", "num_groups=32", "48", "num_groups=24"]),
        (lambda: ILMGroupNorm(8, 8), ["key_group_size=16", "8", "key_group_size=8"]),
        (lambda: ILMGroupNorm(64, key_group_size=0), ["key_group_size=0", "key_group_size=64"]),
        (lambda: ILMInstanceNorm(24), ["ILMInstanceNorm", "key_group_size=16", "24"]),
        (lambda: ILMLayerNorm(24), ["ILMLayerNorm", "key_group_size=12"]),
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
        (lambda: AssocNorm(48, 16), ["AssocNorm", "num_key_groups=32", "num_key_groups=24"]),
        (lambda: AssocNorm(64, combine="W+B"), ["combine='W+B'", "'a(WE)+B'"]),
        (lambda: AssocNorm(64, combine="a(WE)", init="identity"), ["identity", "a(WE)+B"]),
        (lambda: ExemplarNorm(48), ["ExemplarNorm", "reduction=32", "48", "reduction=24"]),
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
        (lambda: SwitchNorm(64, normalizers="BN"), ["normalizers='BN'", "no tuple"]),
        (lambda: SwitchNorm(64, normalizers=(["IN"],)), ["normalizers=['IN']", "unknown"]),
        (lambda: SwitchNorm(0), ["num_channels=0", "positive"]),
    ],
)
def test_refused_options_say_the_numbers_and_the_mend(build, words):
    with pytest.raises(ValueError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@every_layer
def test_unknown_options_are_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown option 'group_count'; the options are .*eps"):
        NORMS[name](64, group_count=3)


def test_signatures_show_every_option():
    shown = {
        layer: str(inspect.signature(layer).replace(return_annotation=inspect.Signature.empty))
        for layer in (ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm)
    }
    options = (
        "key_group_size: int = 16, activations: tuple[str, str] = ('tanh', 'sigmoid'), "
        "hidden: int | None = None, init: str = 'default', "
        "device: torch.device | str | None = None, dtype: torch.dtype | None = None)"
    )
    first = "(num_channels: int, "
    assert shown[ILMGroupNorm] == f"{first}num_groups: int = 32, eps: float = 1e-05, *, {options}"
    for layer in (ILMInstanceNorm, ILMLayerNorm):
        assert shown[layer] == f"{first}eps: float = 1e-05, *, {options}"
    for layer in (ExemplarNorm, SwitchNorm):
        assert list(inspect.signature(layer).parameters)[-5:] == [
            *("normalizers", "num_groups", "sync", "device", "dtype")
        ]


@every_layer
@pytest.mark.parametrize("shape", [(64,), (2, 32, 4, 4)], ids=["1-D", "other channels"])
def test_input_of_another_shape_is_refused(name, shape):
    with pytest.raises(ValueError, match=r"expected \(N, 64, \*\)"):
        NORMS[name](64)(torch.zeros(shape))


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy", reason="needs numpy")
    assert ILMGroupNorm(np.int64(64), np.int64(8)).num_groups == 8
    assert SwitchNorm(64, momentum=np.float32(0.5)).momentum == 0.5


@every_layer
def test_integer_input_is_refused(name):
    with pytest.raises(ValueError, match=r"int64, expected floating point"):
        NORMS[name](64)(torch.zeros(2, 64, 3, 3, dtype=torch.long))


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


@pytest.mark.parametrize(
    "channels, key_group_size, hidden", [(64, 16, 2), (512, 16, 2), (1024, 16, 4), (512, 1, 32)]
)
def test_length_of_the_embedding(channels, key_group_size, hidden):
    assert ILMGroupNorm(channels, key_group_size=key_group_size).hidden == hidden
    assert ILMGroupNorm(channels, hidden=7).encode.weight.shape[0] == 7


def test_a_group_norm_checkpoint_loads_and_the_rest_is_reported_missing():
    plain = torch.nn.GroupNorm(32, 64)
    torch.nn.init.normal_(plain.weight)
    layer = ILMGroupNorm(64, init="identity")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*\"encode.weight\""):
        layer.load_state_dict(plain.state_dict())
    result = layer.load_state_dict(plain.state_dict(), strict=False)
    own = {"encode.weight", "decode_mean.weight", "decode_var.weight", "omega_offset"}
    assert not result.unexpected_keys and set(result.missing_keys) == own
    x = torch.randn(2, 64, 5, 5)
    torch.testing.assert_close(layer(x), plain(x))


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


def test_public_names():
    assert set(ilm_plugins.__all__) - {"NORMS", "register", "set_radius", "use_backend"} == {
        layer.__name__ for layer in NORMS.values()
    }
    assert list(NORMS) == ["ILMGN", "ILMIN", "ILMLN", "AssocNorm", "EN", "SN", "SSN"]
