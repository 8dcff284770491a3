"""States of a norm beside its tensors: a conversion keeps their effect, or the report names it."""

import copy

import pytest
import torch
from torch import nn

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import Block, double, randomized
from ilm_plugins import ExemplarNorm, SwitchNorm, surgery
from ilm_plugins.layers.activated import NormWithActivation
from ilm_plugins.surgery.norms import KEYS

C = 32
MIXTURES = "EN", "SN", "SSN"


def without_tracking(make=nn.BatchNorm2d, **options):
    """A norm as Lightning's ``BaseFinetuning.freeze(train_bn=False)`` leaves it."""
    norm = randomized(make(C, **options)).double()
    norm.track_running_stats = False
    return norm


@pytest.mark.parametrize("to", MIXTURES)
@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_statistics_that_are_not_tracked_do_not_move(to, value):
    layer, _ = surgery.convert(without_tracking(), to)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.train()(value * double(2, C, 5, 5))
    assert_equal(dict(layer.named_buffers()), before)


def test_statistics_that_are_not_tracked_leave_training_to_the_batch():
    x = 3 * double(4, C, 5, 5) + 1
    plain = without_tracking()
    expected = plain.train()(x)
    layer, _ = surgery.convert(plain, "EN")
    layer.ratio.bias.data.copy_(torch.tensor([-100.0, -100.0, 100.0]))  # only BN
    layer.weight.data /= 3
    assert_close(layer(x), expected, EQUAL)


@pytest.mark.parametrize("to", MIXTURES)
def test_the_report_tells_of_statistics_that_are_not_tracked(to):
    _, report = surgery.convert(nn.Sequential(without_tracking()), to)
    (names,) = (names for words, names in report.notes.items() if "momentum=0" in words)
    assert names == ["0"]


def test_the_way_back_from_statistics_that_are_not_tracked_keeps_them():
    back, _ = surgery.revert(surgery.convert(without_tracking(), "EN")[0])
    before, x = back.running_mean.clone(), double(4, C, 5, 5)
    assert_close(back.train()(x), without_tracking()(x), EQUAL)
    assert_equal(back.running_mean, before)


def with_activation(make, act):
    norm_act = pytest.importorskip("timm.layers.norm_act", reason="needs timm")
    norm = getattr(norm_act, make)(C, act_layer=act)
    return randomized(norm).double().eval()


def test_activations_that_torchs_synchronization_has_dropped_stay_dropped():
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(with_activation("BatchNormAct2d", nn.SiLU))
    x = double(2, C, 5, 5)
    expected = plain(x)
    layer, _ = surgery.convert(nn.Sequential(plain), "EN")
    assert_close(layer(x), expected, EQUAL)


def test_activations_that_timms_synchronization_keeps_are_kept():
    norm_act = pytest.importorskip("timm.layers.norm_act", reason="needs timm")
    plain = norm_act.convert_sync_batchnorm(with_activation("BatchNormAct2d", nn.SiLU))
    x = double(2, C, 5, 5)
    expected = plain(x)
    layer, report = surgery.convert(plain, "EN")
    assert_close(layer(x), expected, EQUAL)
    assert layer[0].sync is True
    assert not report.notes


def test_a_trained_activation_does_not_decide_what_of_the_norm_is_trained():
    plain = with_activation("BatchNormAct2d", nn.PReLU)
    plain.weight.requires_grad_(False), plain.bias.requires_grad_(False)
    layer, _ = surgery.convert(plain, "EN")
    assert not any(p.requires_grad for p in layer[0].parameters())
    assert layer[1].weight.requires_grad


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize(
    "make", [nn.BatchNorm2d, lambda c: surgery.convert(nn.BatchNorm2d(c), "EN")[0]]
)
def test_the_report_tells_of_hooks(register, make):
    norm = make(C)
    getattr(norm, register)(lambda *_: None)
    operate = surgery.revert if isinstance(norm, ExemplarNorm) else surgery.convert
    to = [] if isinstance(norm, ExemplarNorm) else ["EN"]
    _, report = operate(nn.Sequential(norm), *to)
    (names,) = (names for words, names in report.notes.items() if words.startswith("hooks"))
    assert names == ["0"]


def test_a_norm_whose_forward_is_replaced_is_left():
    norm = nn.BatchNorm2d(C)
    norm.forward = lambda x: 2 * nn.BatchNorm2d.forward(norm, x)
    same, report = surgery.convert(norm, "EN")
    assert same is norm
    assert "forward method is replaced" in report.left[""]


def test_a_norm_whose_weight_is_no_parameter_is_left():
    norm = nn.BatchNorm2d(C)
    weight = norm.weight.detach()
    del norm.weight
    norm.weight = weight  # as FullyShardedDataParallel sets a view of its flat parameter
    same, report = surgery.convert(norm, "EN")
    assert same is norm
    assert "before you wrap it" in report.left[""]


def scripted(part):
    return torch.jit.script(part)


def traced(part):
    return torch.jit.trace(part, torch.zeros(2, 3, 5, 5))


@pytest.mark.parametrize("record", [scripted, traced])
def test_a_norm_within_a_torchscript_part_is_left(record):
    part = record(nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)).eval())
    model, report = surgery.convert(nn.ModuleDict({"part": part, "norm": nn.BatchNorm2d(C)}), "EN")
    assert [*report.left] == ["part.1"]
    assert report.converted.keys() == {"norm"}
    assert model["part"] is part


def test_a_norm_within_a_compiled_model_is_replaced_there():
    model = nn.Sequential(randomized(nn.BatchNorm2d(C)), nn.ReLU()).double().eval()
    x = double(2, C, 5, 5)
    expected = model(x)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    compiled, _ = surgery.convert(compiled, "EN")
    assert_close(compiled(x), expected, EQUAL)
    model[0].bias.data += 1
    assert (compiled(x) - expected).abs().max() > 0.5


@pytest.mark.parametrize("name", ["InPlaceABN", "EvoNorm2dB0"])
def test_an_unknown_module_with_running_statistics_is_listed(name):
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(C))
            self.register_buffer("running_var", torch.ones(C))

    Unknown.__name__ = name
    _, report = surgery.convert(nn.Sequential(Unknown()), "EN")
    assert report.left == {"0": f"{name}, but EN replaces BatchNorm"}


def test_a_synchronizing_norm_that_types_names_becomes_a_synchronizing_layer():
    class NaiveSyncBatchNorm(nn.BatchNorm2d):
        pass

    layer, _ = surgery.convert(NaiveSyncBatchNorm(C), "EN", types=[NaiveSyncBatchNorm])
    assert layer.sync is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("to", KEYS.values())
def test_16_bit_norms_convert_with_the_same_tensors(to, dtype):
    plain = randomized(nn.BatchNorm2d(C)).to(dtype).eval()
    weight = plain.weight.detach().clone()
    layer, _ = surgery.convert(copy.deepcopy(plain), to, replacing="BN")
    expected = torch.stack([0 * weight, 0 * weight, 3 * weight]) if to == "EN" else weight
    assert_equal(layer.weight.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_ratios_are_rounded_once(dtype):
    """SSN's ratios are the softmax of SN's logits; ones of 16 bits would not sum to 1."""
    plain = SwitchNorm(C).to(dtype)
    nn.init.uniform_(plain.mean_weight, -2, 2)
    exact = plain.mean_weight.detach().double().softmax(0).float().to(dtype)
    state, _ = surgery.convert_state(Block("0", plain).to(dtype).state_dict(), "SSN")
    assert_equal(state["0.mean_weight"], exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_state_dict_is_not_rounded_for_a_float32_model(dtype):
    plain = randomized(nn.BatchNorm2d(C)).to(dtype)
    state = {f"0.{name}": tensor for name, tensor in plain.state_dict().items()}
    fitted, _ = surgery.fit_state(state, nn.Sequential(ExemplarNorm(C)))
    assert_equal(fitted["0.weight"][-1], 3 * plain.weight.detach().float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_way_back_from_16_bits_is_rounded_once(dtype):
    """EN's biases are added in float32."""
    layer = surgery.convert(randomized(nn.BatchNorm2d(C)), "EN")[0].to(dtype)
    nn.init.normal_(layer.bias)
    exact = layer.bias.detach().float().sum(0).to(dtype)
    assert_equal(surgery.revert_state(layer.state_dict())[0]["bias"], exact)
    assert_equal(surgery.revert(layer)[0].bias.detach(), exact)


def test_a_norm_with_float32_statistics_in_a_16_bit_model_keeps_both_dtypes():
    plain = nn.BatchNorm2d(C).eval()
    plain.weight.data, plain.bias.data = plain.weight.data.half(), plain.bias.data.half()
    layer, _ = surgery.convert(plain, "EN")
    assert layer.weight.dtype == torch.float16
    assert layer.running_mean.dtype == torch.float32


def blocks(make, act_layer=nn.PReLU, **options):
    """A model of timm's norms with activations."""
    norm_act = pytest.importorskip("timm.layers.norm_act", reason="needs timm")
    made = [
        getattr(norm_act, make)(C, act_layer=act_layer, **more, **options)
        for more in ({}, {"drop_layer": nn.Dropout}, {"apply_act": False})
    ]
    return randomized(nn.Sequential(*made)).double().eval()


@pytest.mark.parametrize(
    "make, to, options",
    [("BatchNormAct2d", "EN", {}), ("GroupNormAct", "ILMGN", {"num_groups": 8})],
)
class TestTimmsNorms:
    """They come back as timm builds them."""

    def test_the_names_come_back(self, make, to, options):
        plain = blocks(make, **options)
        model, _ = surgery.revert(surgery.convert(copy.deepcopy(plain), to)[0])
        assert_close(dict(model.state_dict()), dict(plain.state_dict()), 16)

    @pytest.mark.parametrize("affine", [True, False])
    def test_the_modules_come_back_with_their_options(self, make, to, options, affine):
        plain = blocks(make, affine=affine, **options)
        for norm in plain:
            norm.eps = 1e-3
            if to == "EN":
                norm.momentum = 0.3
        model, _ = surgery.revert(surgery.convert(copy.deepcopy(plain), to)[0])
        assert repr(model) == repr(plain)

    def test_a_copy_comes_back_from_a_file(self, make, to, options, tmp_path):
        plain = blocks(make, **options)
        layers, _ = surgery.convert(copy.deepcopy(plain), to)
        torch.save(copy.deepcopy(layers), tmp_path / "layers.pt")
        model, _ = surgery.revert(torch.load(tmp_path / "layers.pt", weights_only=False))
        assert [type(norm) for norm in model] == [type(norm) for norm in plain]

    def test_a_state_dict_of_layers_fits_a_model_of_timm(self, make, to, options):
        plain = blocks(make, nn.SiLU, **options)
        layers, _ = surgery.convert(copy.deepcopy(plain), to)
        state, report = surgery.fit_state(layers.state_dict(), plain)
        assert [*report.converted] == ["0", "1", "2"]
        assert_close(dict(state), dict(plain.state_dict()), 16)

    @pytest.mark.parametrize("within", ["state of timm", "converted state"])
    def test_a_state_dict_of_timm_fits_a_model_of_layers(self, make, to, options, within):
        plain, x = blocks(make, nn.SiLU, **options), double(2, C, 5, 5)
        layers, _ = surgery.convert(blocks(make, nn.SiLU, **options), to)
        state = plain.state_dict()
        if within == "converted state":
            state, report = surgery.convert_state(state, to, match=["0", "1", "2"], **options)
            assert [*report.converted] == ["0", "1", "2"]
        state, _ = surgery.fit_state(state, layers)
        layers.load_state_dict(state)
        assert_close(layers(x), plain(x), EQUAL)


def test_a_layer_before_two_activations_keeps_both_on_the_way_back():
    model, _ = surgery.convert(blocks("BatchNormAct2d")[:1], "EN")
    model.append(NormWithActivation(model[0][0], nn.Tanh()).eval())
    expected = model(x := double(2, C, 5, 5))
    assert_close(surgery.revert(model)[0](x), expected, EQUAL)


@pytest.mark.parametrize("affine", [True, False])
def test_mmengines_batchnorm_of_any_dimensions_comes_back(affine):
    utils = pytest.importorskip("mmengine.model.utils", reason="needs mmengine")
    norm = nn.SyncBatchNorm(C, eps=1e-3, momentum=0.3, affine=affine)
    plain = utils.revert_sync_batchnorm(nn.Sequential(norm))
    plain, x = randomized(plain).double().eval(), double(2, C, 5)
    model, _ = surgery.revert(surgery.convert(copy.deepcopy(plain), "EN")[0])
    assert repr(model) == repr(plain)
    assert_close(model(x), plain(x), EQUAL)


def test_a_plain_norm_comes_back_from_a_layer_that_became_another():
    norm_act = pytest.importorskip("timm.layers.norm_act", reason="needs timm")
    layer, _ = surgery.convert(norm_act.BatchNormAct2d(C, apply_act=False), "SN")
    layer, _ = surgery.convert(layer, "SSN")
    for name in ("mean_fixed", "var_fixed"):
        getattr(layer, name)[:] = torch.tensor([0, 0, 1])
    plain, _ = surgery.revert(layer)
    assert type(plain) is norm_act.BatchNormAct2d


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("to, is_kept", [("ILMGN", True), ("EN", False)])
def test_the_report_tells_of_hooks_of_parameters_that_are_replaced(register, to, is_kept):
    norm = nn.BatchNorm2d(C) if to == "EN" else nn.GroupNorm(4, C)
    getattr(norm.weight, register)(lambda *_: None)
    _, report = surgery.convert(nn.Sequential(norm), to)
    assert any(note.startswith("hooks") for note in report.notes) == (not is_kept)
