"""The command convert: formats, what is kept and dropped, and mistakes."""

import pytest
import torch
from torch import nn

from ilm_plugins import ILMGroupNorm
from ilm_plugins.checkpoints import read, write
from ilm_plugins.cli import convert
from swaps import change, randomized
from workers import Harmful


class Model(nn.Module):
    def __init__(self, in_backbone, in_head):
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 32, 3), "norm": in_backbone})
        self.head = nn.ModuleDict({"norm": in_head, "fc": nn.Conv2d(32, 2, 1)})

    def forward(self, x):
        for part in (self.backbone, self.head):
            for layer in part.values():
                x = layer(x)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomized(Model(nn.GroupNorm(4, 32), nn.GroupNorm(4, 32))).double()


def run(*words):
    return convert.main([str(word) for word in words])


def refused(capsys, *words):
    """The one line that a mistake prints."""
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


HEAD = ("--to", "ILMGN", "--match", "head.*")


def check_head(state, model):
    """A state dict is the model's, the head's norm an ILMGN that does the same."""
    ours = Model(nn.GroupNorm(4, 32), ILMGroupNorm(32, 4)).double()
    ours.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert change(model(x), ours(x)) <= 1e-10


@pytest.mark.parametrize("entry", ["model", "state_dict", None])
@pytest.mark.parametrize(
    "source, target",
    [(".pth", ".pth"), (".pth", ".pkl"), (".pth", ".safetensors"), (".pkl", ".pt")],
)
def test_every_format_becomes_every_other(tmp_path, model, capsys, source, target, entry):
    if target == ".safetensors":
        pytest.importorskip("safetensors", reason="its files need safetensors")
    state = model.state_dict()
    state["tied"] = state["head.fc.weight"]
    if source == ".pkl":
        state = {name: tensor.numpy() for name, tensor in state.items()}
    beside = {"optimizer": {}, "__author__": "zoo", "meta": {"epoch": 3, "dataset_meta": ["cat"]}}
    write({entry: state, **beside} if entry else state, tmp_path / f"in{source}")
    assert run(tmp_path / f"in{source}", tmp_path / f"out{target}", *HEAD) == 0
    printed = capsys.readouterr().out
    assert "converted, GN or IN -> ILMGroupNorm (1):\n    head.norm\n" in printed
    contents = read(tmp_path / f"out{target}")
    if target == ".pkl":
        assert contents["__author__"] == ("zoo" if entry else "ilm_plugins")
        contents = contents["model"]
    elif target != ".safetensors" and entry:
        assert contents.keys() == {"__author__", "meta", entry}
        assert contents["meta"] == {"dataset_meta": ["cat"]}
        contents = contents[entry]
    assert ("not copied: optimizer" in printed) == bool(entry)
    contents.pop("tied")
    check_head(contents, model)


def test_there_and_back(tmp_path, model):
    write(model.state_dict(), tmp_path / "gn.pth")
    options = ("--to", "ILMGN(key_group_size=8)", "--match", "*")
    assert run(tmp_path / "gn.pth", tmp_path / "ilm.pth", *options) == 0
    assert read(tmp_path / "ilm.pth")["head.norm.encode.weight"].shape == (2, 4)
    assert run(tmp_path / "ilm.pth", tmp_path / "back.pth", "--revert") == 0
    back = read(tmp_path / "back.pth")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    assert back._metadata == model.state_dict()._metadata


def test_batchnorm_becomes_a_norm_of_each_image_on_request(tmp_path, capsys):
    plain = Model(nn.BatchNorm2d(32), nn.BatchNorm2d(32))
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.pth", "--to", "ILMIN"
    assert "replacing='BN'" in refused(capsys, *words)
    assert run(*words, "--replacing", "BN") == 0
    assert "head.norm.encode.weight" in read(tmp_path / "out.pth")


def test_code_is_refused_unless_it_is_trusted(tmp_path, model, capsys):
    trap, path, out = tmp_path / "trap", tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"model": model.state_dict(), "extra": Harmful(trap)}, path)
    assert "--unsafe" in refused(capsys, path, out, *HEAD)
    assert not trap.exists() and not out.exists()
    assert run(path, out, *HEAD, "--unsafe") == 0 and trap.exists()


def test_input_is_kept_and_output_replaced_only_if_asked_for(tmp_path, model, capsys):
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    write(model.state_dict(), path)
    (tmp_path / "link.pth").symlink_to(path)
    for other in (path, tmp_path / "link.pth"):
        assert "is INPUT" in refused(capsys, path, other, *HEAD, "--overwrite")
    out.write_text("before")
    assert "--overwrite" in refused(capsys, path, out, *HEAD)
    assert "nothing in" in refused(capsys, path, out, "--to", "ILMGN", "--overwrite")
    assert out.read_text() == "before"
    assert run(path, out, *HEAD, "--overwrite") == 0
    check_head(read(out), model)


@pytest.mark.parametrize("name", ["out.onnx", "out", "folder/out.pth"])
def test_an_output_of_an_unknown_format_or_folder_is_refused(tmp_path, model, capsys, name):
    write(model.state_dict(), tmp_path / "in.pth")
    error = refused(capsys, tmp_path / "in.pth", tmp_path / name, *HEAD)
    assert "must end with .pth, .pt" in error or "not in a folder" in error


@pytest.mark.parametrize(
    "options, words",
    [
        (["--to", "ILMGN(hiden=2)"], "unknown option 'hiden'"),
        (["--to", "ILMGN(replacing='BN')"], "unknown option 'replacing'"),
        (["--to", "ILMGN", "KEY", "VALUE"], "KEY VALUE needs --config-file"),
        (["--to", "ILMGN", "--part", "head"], "--part head needs --config-file"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--config-file", "nowhere.yaml", "--match", "*"], "--match needs --to"),
        (["--revert", "--replacing", "BN"], "--replacing BN needs --to"),
    ],
)
def test_options_that_do_not_fit(tmp_path, model, capsys, options, words):
    write(model.state_dict(), tmp_path / "in.pth")
    assert words in refused(capsys, tmp_path / "in.pth", tmp_path / "out.pth", *options)
    assert not (tmp_path / "out.pth").exists()
