"""Checkpoints of the papers' released code, but for the variances, divided by n - 1 there."""

import pytest
import torch
from torch import nn

from equations import transcription
from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import Block, double
from ilm_plugins import AttentiveNorm, ILMGroupNorm, SparseSwitchNorm, SwitchNorm, surgery


def released_ilm(hidden=2):
    """The state dict of a released ILM+GN layer of 64 channels, in key groups of 16."""
    state = {name: double(1, 64, 1, 1) for name in ("weight_bias", "bias_bias")}
    encoders = ("fc_embed.0.weight", "fc_weight.0.0.weight", "fc_bias.0.0.weight")
    decoders = {f"fc_{part}.1.weight": double(4, hidden) for part in ("weight", "bias")}
    return state | dict.fromkeys(encoders, double(hidden, 4)) | decoders


@pytest.mark.parametrize("hidden", [1, 2])
def test_ilm(hidden):
    theirs, x = released_ilm(hidden), 3 * double(2, 64, 5, 5) + 1
    tensors = theirs["weight_bias"][0, :, 0, 0], theirs["bias_bias"][0, :, 0, 0]
    decoders = {"mean": theirs["fc_bias.1.weight"], "var": theirs["fc_weight.1.weight"]}
    decoders = {f"decode_{name}": decoder for name, decoder in decoders.items()}
    options = {"num_groups": 4, "key_group_size": 16, "eps": 1e-5, **decoders}
    expected = transcription.ilm_norm(x, *tensors, theirs["fc_embed.0.weight"], **options)
    state = {f"norm.{name}": tensor for name, tensor in theirs.items()}
    model = Block("norm", ILMGroupNorm(64, 4))
    converted, report = surgery.convert_state(state, "ILMGN")
    assert report.converted == {"norm": "released ILM -> ILMGroupNorm"}
    assert "divides variances by n - 1" in str(report)
    for found in (converted, surgery.fit_state(state, model)[0]):
        nn.init.normal_(model.norm.decode_var.weight)
        model.load_state_dict(found)
        assert_close(model.norm(x), expected, EQUAL)


def test_ilm_that_does_not_fit():
    for to, options, words in (
        ("ILMGN", {"key_group_size": 8}, "key groups of 16 channels, of 8 in the layer"),
        ("ILMGN", {"hidden": 1}, "set hidden=2"),
        ("AssocNorm", {}, "released ILM does not become AssocNorm"),
        ("SN", {}, "released ILM does not become SwitchNorm"),
    ):
        assert words in surgery.convert_state(released_ilm(), to, **options)[1].left[""]


def test_an():
    shapes = (20, 64, 1, 1), (20,), (20, 64), (20, 64)
    maps, map_bias, *pairs = theirs = [double(*shape) for shape in shapes]
    names = "attention_weights.attention.0.weight", "attention_weights.attention.0.bias"
    state = {f"agn1.{n}": t for n, t in zip((*names, "weight_", "bias_"), theirs, strict=True)}
    x, plain = double(2, 64, 5, 5), (torch.ones(64).double(), torch.zeros(64).double())
    options = {"num_groups": 32, "eps": 1e-5}
    expected = transcription.attentive_norm(x, *plain, maps.flatten(1), map_bias, *pairs, **options)
    model = Block("gn1", AttentiveNorm(64, num_affine=20))
    converted, report = surgery.convert_state(state, "AN")
    assert report.converted == {"agn1": "released AN -> AttentiveNorm"}
    assert "divides variances by n - 1" in str(report)
    converted = {name.replace("agn1", "gn1"): t for name, t in converted.items()}
    for found in (converted, surgery.fit_state(state, model)[0]):
        model.gn1.reset_parameters()
        model.load_state_dict(found)
        assert_close(model.gn1(x), expected, EQUAL)
    _, report = surgery.convert_state(state, "AN", num_affine=10)
    assert "set num_affine=20" in report.left["agn1"]


def released_sn(k=3):
    """The state dict of a released SN layer of 32 channels and k normalizers."""
    state = {"weight": double(1, 32, 1, 1), "bias": double(1, 32, 1, 1)}
    state |= {"mean_weight": double(k), "var_weight": double(k)}
    if k == 3:
        state |= {"running_mean": double(1, 32, 1), "running_var": double(1, 32, 1).exp()}
    return state


def of_vectors():
    """The state dict of a released SwitchNorm1d, which has no IN."""
    return {k: v.view(1, -1) if v.numel() == 32 else v[:2] for k, v in released_sn().items()}


@pytest.mark.parametrize(
    "make, normalizers, shape",
    [
        (released_sn, ("IN", "LN", "BN"), (2, 32, 5, 5)),
        (lambda: released_sn(2), ("IN", "LN"), (2, 32, 5, 5)),
        (of_vectors, ("LN", "BN"), (4, 32)),
    ],
)
def test_sn(make, normalizers, shape):
    theirs, x = make(), double(*shape)
    options = {name: tensor.flatten() for name, tensor in theirs.items()}
    expected = transcription.switch_norm(x, **options, normalizers=normalizers, eps=1e-5)
    state, report = surgery.convert_state(theirs, "SN", normalizers=normalizers)
    assert report.converted == {"": "released SN -> SwitchNorm"}
    ours = SwitchNorm(32, normalizers=normalizers).double().eval()
    ours.load_state_dict(state)
    assert_close(ours(x), expected, EQUAL)
    _, report = surgery.convert_state(theirs, "SN", normalizers=("BN", "LN"))
    assert f"set normalizers={normalizers}" in report.left[""]


@pytest.mark.parametrize("fixed", [False, True, None])
def test_ssn(fixed):
    """Fixed is None for SN, which becomes SSN at radius 0."""
    theirs, x, kind = released_sn(), double(2, 32, 5, 5), "SN" if fixed is None else "SSN"
    if fixed is not None:
        theirs |= {"radius": torch.full((1,), 0.4), "var_fixed": torch.tensor([False])}
        theirs["mean_fixed"] = torch.tensor([fixed])
    state, report = surgery.convert_state(theirs, "SSN")
    assert report.converted == {"": f"released {kind} -> SparseSwitchNorm"}
    ours = SparseSwitchNorm(32).double().eval()
    ours.load_state_dict(state)
    logits = [theirs["mean_weight"], theirs["var_weight"]]
    expected = [v.softmax(0) for v in logits]
    if kind == "SSN":
        expected = [transcription.sparsestmax(v, ours.radius.item()) for v in logits]
    if fixed:
        expected[0] = nn.functional.one_hot(logits[0].argmax(), 3).double()
    options = {n: theirs[n].flatten() for n in ("weight", "bias", "running_mean", "running_var")}
    options |= {"mean_weight": logits[0], "var_weight": logits[1], "eps": 1e-5}
    ratios = iter(expected)
    y = transcription.switch_norm(x, to_ratios=lambda _: next(ratios), **options)
    assert_close(ours(x), y, EQUAL)
