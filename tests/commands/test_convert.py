"""The command convert: formats, what is kept and dropped, and mistakes."""

import os
import signal
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from helpers import processes
from helpers.close import assert_close, assert_equal
from helpers.convert_command import refused, run
from helpers.swapped_norms import randomized
from helpers.workers import Harmful
from ilm_plugins import ExemplarNorm, ILMGroupNorm, SwitchNorm, surgery
from ilm_plugins.checkpoints import read, write
from ilm_plugins.cli import convert as convert_command
from ilm_plugins.cli.convert import fit
from ilm_plugins.errors import UserError
from ilm_plugins.files import PARTIAL
from ilm_plugins.trust import ALLOW_CODE


def model_of(last):
    layers = {"conv": nn.Conv2d(3, 32, 3), "norm": nn.GroupNorm(4, 32), "last": last}
    return nn.Sequential(OrderedDict(layers)).double()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomized(model_of(nn.GroupNorm(4, 32)))


LAST = ("--to", "ILMGN", "--match", "last")


def check_last(state, model):
    """A state dict is the model's, its last norm an ILMGN that does the same."""
    ours = model_of(ILMGroupNorm(32, 4))
    ours.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert_close(ours(x), model(x), 2**20)


@pytest.mark.parametrize(
    "source, entry, target",
    [
        *((".pth", "model", ".pth"), (".pth", None, ".pkl")),
        *((".pth", "state_dict", ".safetensors"), (".pkl", "model", ".pt")),
    ],
)
def test_every_format_becomes_every_other(tmp_path, model, capsys, source, entry, target):
    if target == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    state = model.state_dict()
    state["tied"] = state["conv.weight"]
    if source == ".pkl":
        state = {name: tensor.numpy() for name, tensor in state.items()}
    beside = {"optimizer": {}, "__author__": "zoo", "matching_heuristics": True}
    beside["meta"] = {"epoch": 3, "dataset_meta": ["cat"]}
    write({entry: state, **beside} if entry else state, tmp_path / f"in{source}")
    assert run(tmp_path / f"in{source}", tmp_path / f"out{target}", *LAST) == 0
    printed = capsys.readouterr().out
    assert "converted, GN or IN -> ILMGroupNorm (1): last\n" in printed
    assert ("not copied: optimizer" in printed) == bool(entry)
    contents = read(tmp_path / f"out{target}")
    if target == ".pkl":
        assert contents["__author__"] == "ilm_plugins"
        contents = contents["model"]
    elif target != ".safetensors":
        assert contents.keys() == {"__author__", "matching_heuristics", "meta", entry}
        assert contents["matching_heuristics"] is True
        assert contents["meta"] == {"dataset_meta": ["cat"]}
        contents = contents[entry]
    contents.pop("tied")
    check_last(contents, model)


def test_batchnorm_becomes_another_norm_if_asked_for(tmp_path, capsys):
    plain = randomized(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)))
    write(plain.state_dict(), tmp_path / "bn.pth")
    words = tmp_path / "bn.pth", tmp_path / "ilmgn.pth", "--to", "ILMGN(num_groups=4)"
    assert "give --replacing BN" in refused(capsys, *words)
    assert run(*words, "--replacing", "BN") == 0
    assert "BN -> ILMGroupNorm (1): 1\nnote, outputs change" in capsys.readouterr().out
    ours = nn.Sequential(nn.Conv2d(3, 32, 3), ILMGroupNorm(32, 4)).double()
    ours.load_state_dict(read(tmp_path / "ilmgn.pth"))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    y = plain.double()[0](x)
    expected = nn.functional.group_norm(y, 4, plain[1].weight, plain[1].bias)
    assert_close(ours(x), expected, 2**20)


def test_a_file_of_caffe2_needs_detectron2(tmp_path, capsys, monkeypatch):
    write({"conv1_w": np.ones((2, 2)), "res_conv1_bn_s": np.ones(2)}, tmp_path / "in.pkl")
    monkeypatch.setattr("ilm_plugins.frameworks.config_files.installed", lambda package: False)
    told = refused(capsys, tmp_path / "in.pkl", tmp_path / "out.pkl", "--to", "EN")
    assert "in.pkl needs detectron2: " in told


def test_a_file_of_torch_is_not_taken_for_one_of_caffe2(tmp_path):
    torch.save(nn.BatchNorm2d(32).state_dict(), tmp_path / "in.pkl")
    assert run(tmp_path / "in.pkl", tmp_path / "out.pth", "--to", "EN") == 0
    ExemplarNorm(32).load_state_dict(read(tmp_path / "out.pth"), strict=True)


@pytest.fixture
def converted(tmp_path, model):
    """A checkpoint whose GroupNorms have become ILMGN."""
    write(model.state_dict(), tmp_path / "gn.pth")
    options = ("--to", "ILMGN(key_group_size=8)", "--match", "*")
    assert run(tmp_path / "gn.pth", tmp_path / "ilm.pth", *options) == 0
    return tmp_path / "ilm.pth"


def test_only_matching_layers_are_reverted(converted, tmp_path):
    assert run(converted, tmp_path / "half.pth", "--revert", "--match", "last") == 0
    half = read(tmp_path / "half.pth")
    assert "norm.encode.weight" in half
    assert "last.encode.weight" not in half


def test_a_reverted_checkpoint_is_the_original(converted, tmp_path, model):
    assert run(converted, tmp_path / "half.pth", "--revert", "--match", "last") == 0
    assert run(tmp_path / "half.pth", tmp_path / "back.pth", "--revert") == 0
    back = read(tmp_path / "back.pth")
    assert_equal(dict(back), dict(model.state_dict()))
    assert back._metadata == model.state_dict()._metadata


@pytest.mark.parametrize("variable", [None, ALLOW_CODE])
def test_code_is_refused_unless_it_is_trusted(tmp_path, model, capsys, monkeypatch, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    trap, path, out = tmp_path / "trap", tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"model": model.state_dict(), "extra": Harmful(trap)}, path)
    assert "--unsafe" in refused(capsys, path, out, *LAST)
    assert not trap.exists()
    assert not out.exists()
    assert run(path, out, *LAST, "--unsafe") == 0
    assert trap.exists()


@pytest.fixture
def path(tmp_path, model):
    """A checkpoint of the model."""
    write(model.state_dict(), tmp_path / "in.pth")
    return tmp_path / "in.pth"


def test_the_input_is_never_replaced(path, tmp_path, capsys):
    (tmp_path / "link.pth").symlink_to(path)
    for other in (path, tmp_path / "link.pth"):
        assert "is INPUT" in refused(capsys, path, other, *LAST, "--overwrite")


def test_an_output_stays_unless_it_may_be_replaced(path, tmp_path, capsys):
    out = tmp_path / "out.pth"
    out.write_text("before")
    assert "--overwrite" in refused(capsys, path, out, *LAST)
    assert out.read_text() == "before"


def test_an_output_that_appears_during_the_conversion_is_kept(path, tmp_path, capsys, monkeypatch):
    out, read_file = tmp_path / "out.pth", convert_command.read_checkpoint

    def read_slowly(source):
        out.write_text("another's")
        return read_file(source)

    monkeypatch.setattr(convert_command, "read_checkpoint", read_slowly)
    assert "--overwrite" in refused(capsys, path, out, *LAST)
    assert out.read_text() == "another's"


def test_an_output_stays_if_no_norm_is_converted(path, tmp_path, capsys):
    out = tmp_path / "out.pth"
    out.write_text("before")
    assert "nothing in" in refused(capsys, path, out, "--to", "ILMGN", "--overwrite")
    assert out.read_text() == "before"


def test_an_output_is_replaced_if_asked_for(path, tmp_path, model):
    out = tmp_path / "out.pth"
    out.write_text("before")
    assert run(path, out, *LAST, "--overwrite") == 0
    check_last(read(out), model)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["out.onnx", *LAST], "must end with .pth, .pt, .bin, .ckpt, .tar, .safetensors, .pkl"),
        (["folder/out.pth", *LAST], "not in a folder"),
        (["out.pth", "--to", "ILMGN", "--replacing", "BN"], "but BN is replaced"),
        (["out.pth", "--revert", "--replacing", "BN"], "--replacing BN needs --to"),
        (["out.pth", "--to", "ILMGN", "--replacing", "XN"], "set it to one of 'GN', 'BN', 'LN'"),
        (["out.pth", *LAST, "--part", "a"], "--part a needs --config-file"),
        (["out.pth", "--to", "ILMGN", "KEY", "VALUE"], "KEY VALUE needs --config-file"),
        (["out.pth", "--config-file", "no.yaml", "--match", "*"], "--match needs --to"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(tmp_path, model, capsys, words, expected):
    write(model.state_dict(), tmp_path / "in.pth")
    assert expected in refused(capsys, tmp_path / "in.pth", tmp_path / words[0], *words[1:])
    assert not (tmp_path / words[0]).exists()


@pytest.mark.parametrize("part", [None, "detector", "detector.backbone"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_part_that_a_checkpoint_is_of_is_named_in_full(part, prefix):
    body = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(32, 32))
    whole = nn.ModuleDict({"detector": nn.ModuleDict({"backbone": nn.ModuleDict({"body": body})})})
    state = {prefix + name: tensor for name, tensor in body.state_dict().items()}
    advice = r"but of its detector\.backbone\.body; give --part detector\.backbone\.body$"
    with pytest.raises(UserError, match=advice):
        fit(state, whole.get_submodule(part or ""), part, by_end=False)
    fit(state, body, "detector.backbone.body", by_end=False)


def named(name, norm):
    """The state dict of a model with one norm of this name."""
    return {f"backbone.layer1.0.{name}.{key}": t for key, t in norm.state_dict().items()}


def of_openmmlab(state, path):
    write({"meta": {"epoch": 1}, "state_dict": state}, path)
    return path


BN_TO_EN, _ = surgery.convert(nn.BatchNorm2d(32), "EN")


@pytest.mark.parametrize(
    "name, norm, words",
    [
        ("bn1", nn.BatchNorm2d(32), ("--to", "EN")),
        ("conv.bn", nn.BatchNorm2d(32), ("--to", "SN")),
        ("bn2", nn.BatchNorm2d(32), ("--to", "ILMGN", "--replacing", "BN")),
        ("in1", nn.GroupNorm(32, 32), ("--to", "ILMIN", "--match", "*")),
        ("gn1", BN_TO_EN, ("--revert",)),
    ],
)
def test_openmmlabs_names_by_type_need_the_config(tmp_path, capsys, name, norm, words):
    path, out = of_openmmlab(named(name, norm), tmp_path / "in.pth"), tmp_path / "out.pth"
    error = refused(capsys, path, out, *words)
    assert f"'backbone.layer1.0.{name}'" in error
    assert "--config-file" in error
    assert not out.exists()


@pytest.mark.parametrize(
    "name, norm, words",
    [
        ("downsample.1", nn.BatchNorm2d(32), ("--to", "EN")),
        ("gn1", nn.GroupNorm(4, 32), ("--to", "ILMGN", "--match", "*")),
        ("gn1", SwitchNorm(32), ("--to", "SSN")),
        ("bn1", BN_TO_EN, ("--revert",)),
    ],
)
def test_openmmlabs_names_that_stay_need_no_config(tmp_path, capsys, name, norm, words):
    path, out = of_openmmlab(named(name, norm), tmp_path / "in.pth"), tmp_path / "out.pth"
    assert run(path, out, *words) == 0
    assert "OpenMMLab" not in capsys.readouterr().out


def test_other_checkpoints_keep_names_by_type_and_the_report_says_so(tmp_path, capsys):
    write(named("bn1", nn.BatchNorm2d(32)), tmp_path / "in.pth")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "EN") == 0
    assert "backbone.layer1.0.bn1.ratio.weight" in read(tmp_path / "out.pth")
    assert "where a model of OpenMMLab has gn1" in capsys.readouterr().out


def of_batchnorm(**entries):
    """A state dict of a BatchNorm "1" with other entries."""
    state = nn.Sequential(nn.Identity(), nn.BatchNorm2d(32)).state_dict()
    return OrderedDict({**state, **entries})


@pytest.mark.parametrize("name", ["1.weight", "1.running_var"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, torch.complex64], ids=str)
def test_every_dtype_is_converted_or_told(tmp_path, capsys, name, dtype):
    torch.save(of_batchnorm(**{name: torch.ones(32).to(dtype)}), tmp_path / "in.pth")
    status = run(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "EN")
    error = capsys.readouterr().err
    assert (status, error.count("\n")) in ((0, 0), (2, 1))
    assert status == 0 or f"is {dtype}; convert it to float32 first" in error


def test_a_full_disk_is_told_and_leaves_no_output(path, tmp_path, capsys, small_files):
    with small_files(1000):
        error = refused(capsys, path, tmp_path / "out.pkl", *LAST)
    assert "out.pkl cannot be written to (File too large); free space" in error
    assert [*tmp_path.iterdir()] == [path]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint that takes a while to write."""
    folder = tmp_path_factory.mktemp("large")
    state = of_batchnorm(**{f"{i}.weight": torch.zeros(1000, 1000) for i in range(2, 60)})
    write(state, folder / "in.pth")
    return folder / "in.pth"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_partial_file_for_ever(large, tmp_path, number):
    """After SIGTERM there is none, after SIGKILL the next conversion removes it."""
    out = tmp_path / "out.pth"
    command = [sys.executable, "-m", "ilm_plugins", "convert", large, out, "--to", "EN"]
    with open(os.devnull, "w") as nowhere:
        process = processes.Process(command, stdout=nowhere, stderr=nowhere)
    while not [*tmp_path.glob(f"*{PARTIAL}")]:
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.wait()
    assert not out.exists()
    assert len([*tmp_path.iterdir()]) == (number == signal.SIGKILL)
    assert run(large, out, "--to", "EN") == 0
    assert [*tmp_path.iterdir()] == [out]
