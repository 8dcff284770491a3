"""Checkpoints of the papers' released code, whose variances are divided by n - 1."""

import pytest
import torch
from torch import nn

import transcription
from ilm_plugins import AttentiveNorm, ILMGroupNorm, SparseSwitchNorm, SwitchNorm, surgery
from swaps import Block, change, double


def released_ilm(hidden=2):
    """The state dict of a released ILM+GN layer of 64 channels, in key groups of 16."""
    encode = double(hidden, 4)
    return {
        "weight_bias": double(1, 64, 1, 1),
        "bias_bias": double(1, 64, 1, 1),
        "fc_embed.0.weight": encode,
        "fc_weight.0.0.weight": encode,
        "fc_weight.1.weight": double(4, hidden),
        "fc_bias.0.0.weight": encode,
        "fc_bias.1.weight": double(4, hidden),
    }


@pytest.mark.parametrize("hidden", [1, 2])
def test_ilm(hidden):
    theirs, x = released_ilm(hidden), 3 * double(2, 64, 5, 5) + 1
    expected = transcription.ilm_norm(
        x,
        theirs["weight_bias"].flatten(),
        theirs["bias_bias"].flatten(),
        theirs["fc_embed.0.weight"],
        decode_mean=theirs["fc_bias.1.weight"],
        decode_var=theirs["fc_weight.1.weight"],
        num_groups=4,
        key_group_size=16,
        eps=1e-5,
    )
    state = {f"norm.{name}": tensor for name, tensor in theirs.items()}
    model = Block("norm", ILMGroupNorm(64, 4))
    converted, report = surgery.convert_state(state, "ILMGN")
    assert report.converted == {"norm": "released ILM -> ILMGroupNorm"}
    assert "divides variances by n - 1" in str(report)
    for found in (converted, surgery.fit_state(state, model)[0]):
        nn.init.normal_(model.norm.decode_var.weight)
        model.load_state_dict(found)
        assert change(expected, model.norm(x)) <= 1e-14


@pytest.mark.parametrize(
    "to, options, words",
    [
        ("ILMGN", {"key_group_size": 8}, "set key_group_size=16"),
        ("ILMGN", {"hidden": 1}, "set hidden=2"),
        ("AssocNorm", {}, "released ILM layer does not become AssocNorm"),
        ("SN", {}, "released ILM does not become SwitchNorm"),
    ],
)
def test_ilm_that_does_not_fit(to, options, words):
    _, report = surgery.convert_state(released_ilm(), to, **options)
    assert words in report.left[""]


def released_an(k):
    """The state dict of a released AN layer of 64 channels over GroupNorm."""
    attention = {"weight": double(k, 64, 1, 1), "bias": double(k)}
    attention = {f"attention_weights.attention.0.{n}": t for n, t in attention.items()}
    return {"weight_": double(k, 64), "bias_": double(k, 64), **attention}


def test_an():
    theirs, x = released_an(20), double(2, 64, 5, 5)
    expected = transcription.attentive_norm(
        x,
        torch.ones(64).double(),
        torch.zeros(64).double(),
        theirs["attention_weights.attention.0.weight"].flatten(1),
        theirs["attention_weights.attention.0.bias"],
        theirs["weight_"],
        theirs["bias_"],
        num_groups=32,
        eps=1e-5,
    )
    state = {f"agn1.{name}": tensor for name, tensor in theirs.items()}
    model = Block("gn1", AttentiveNorm(64, num_affine=20))
    converted, report = surgery.convert_state(state, "AN")
    assert report.converted == {"agn1": "released AN -> AttentiveNorm"}
    assert "divides variances by n - 1" in str(report)
    converted = {name.replace("agn1", "gn1"): t for name, t in converted.items()}
    for found in (converted, surgery.fit_state(state, model)[0]):
        model.gn1.reset_parameters()
        model.load_state_dict(found)
        assert change(expected, model.gn1(x)) <= 1e-13
    _, report = surgery.convert_state(state, "AN", num_affine=10)
    assert "set num_affine=20" in report.left["agn1"]
    bn = nn.BatchNorm2d(64, affine=False).state_dict()
    _, report = surgery.convert_state({**theirs, **bn}, "AN")
    assert report.left == {"": "released AN with another norm does not become AttentiveNorm"}


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
    "theirs, normalizers, shape",
    [
        (released_sn, ("IN", "LN", "BN"), (2, 32, 5, 5)),
        (lambda: released_sn(2), ("IN", "LN"), (2, 32, 5, 5)),
        (of_vectors, ("LN", "BN"), (4, 32)),
    ],
)
def test_sn(theirs, normalizers, shape):
    theirs, x = theirs(), double(*shape)
    options = {name: tensor.flatten() for name, tensor in theirs.items()}
    expected = transcription.switch_norm(x, **options, normalizers=normalizers, eps=1e-5)
    state, report = surgery.convert_state(theirs, "SN", normalizers=normalizers)
    assert report.converted == {"": "released SN -> SwitchNorm"}
    ours = SwitchNorm(32, normalizers=normalizers).double().eval()
    ours.load_state_dict(state)
    assert change(expected, ours(x)) <= 1e-13
    _, report = surgery.convert_state(theirs, "SN", normalizers=("BN", "LN"))
    assert f"set normalizers={normalizers}" in report.left[""]


@pytest.mark.parametrize("fixed", [False, True])
def test_ssn(fixed):
    theirs, x = released_sn() | {"radius": torch.full((1,), 0.4)}, double(2, 32, 5, 5)
    theirs |= {"mean_fixed": torch.tensor([fixed]), "var_fixed": torch.tensor([False])}
    state, report = surgery.convert_state(theirs, "SSN")
    assert report.converted == {"": "released SSN -> SparseSwitchNorm"}
    assert "divides variances by n - 1" in str(report)
    ours = SparseSwitchNorm(32).double().eval()
    ours.load_state_dict(state)
    logits = theirs["mean_weight"], theirs["var_weight"]
    expected = [transcription.sparsestmax(v, ours.radius.item()) for v in logits]
    if fixed:
        expected[0] = nn.functional.one_hot(logits[0].argmax(), 3).double()
    torch.testing.assert_close(ours.ratios(), torch.stack(expected))
    options = {n: theirs[n].flatten() for n in ("weight", "bias", "running_mean", "running_var")}
    options |= {"mean_weight": logits[0], "var_weight": logits[1]}
    ratios = iter(expected)
    y = transcription.switch_norm(x, eps=1e-5, to_ratios=lambda _: next(ratios), **options)
    assert change(y, ours(x)) <= 1e-13


def test_sn_becomes_ssn():
    theirs = released_sn()
    state, report = surgery.convert_state(theirs, "SSN")
    assert report.converted == {"": "released SN -> SparseSwitchNorm"}
    torch.testing.assert_close(state["mean_weight"], theirs["mean_weight"].softmax(0))
    assert not state["radius"].any() and not state["var_fixed"].any()
