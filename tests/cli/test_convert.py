"""tools/convert.py on files without a model: formats, what is kept and dropped, and mistakes."""

import pickle
import sys

import pytest
import torch
from torch import nn

import fresh
from faults import NOT_DENSE
from ilm_plugins import ILMGroupNorm
from ilm_plugins.checkpoints import read, read_metadata, write
from ilm_plugins.cli import convert
from swaps import change, randomized
from workers import Harmful

np = pytest.importorskip("numpy", reason="checkpoints of arrays need numpy")


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
    return randomized(Model(nn.GroupNorm(4, 32), nn.GroupNorm(4, 32)))


@pytest.fixture
def x():
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def run(*words):
    return convert.main([str(word) for word in words])


HEAD = ("--to", "ILMGN", "--match", "head.*")


def check_head(state, model, x):
    """A state dict is the model's, the head's norm an ILMGN that does the same."""
    ours = Model(nn.GroupNorm(4, 32), ILMGroupNorm(32, 4))
    ours.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    assert change(model(x), ours(x)) <= 1e-6


#: Formats, and where in them the state dict is.
SOURCES = [
    *((suffix, entry) for suffix in (".pth", ".pkl") for entry in ("model", "state_dict", None)),
    (".safetensors", None),
]


@pytest.mark.parametrize("source, entry", SOURCES)
@pytest.mark.parametrize("target", [".pth", ".pkl", ".safetensors"])
def test_every_format_becomes_every_other(tmp_path, model, x, entry, source, target):
    if ".safetensors" in (source, target):
        pytest.importorskip("safetensors", reason="its files need safetensors")
    state = model.state_dict()
    if source == ".pkl":
        state = {name: tensor.numpy() for name, tensor in state.items()}
    write(state if entry is None else {entry: state}, tmp_path / f"in{source}")
    assert run(tmp_path / f"in{source}", tmp_path / f"out{target}", *HEAD) == 0
    contents = read(tmp_path / f"out{target}")
    if target == ".pkl":
        assert contents["__author__"] and contents.keys() == {"__author__", "model"}
        assert all(isinstance(value, np.ndarray) for value in contents["model"].values())
        contents = contents["model"]
    elif target == ".pth" and entry is not None:
        assert contents.keys() == {entry}
        contents = contents[entry]
    check_head(contents, model, x)


def test_what_becomes_of_norms_is_printed(tmp_path, model, capsys):
    write(model.state_dict(), tmp_path / "in.pth")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *HEAD, "--match", "backbone.norm") == 0
    assert capsys.readouterr().out.splitlines() == [
        "converted, GN or IN -> ILMGroupNorm (2):",
        "    backbone.norm",
        "    head.norm",
        "note, a state dict has no eps, num_groups or normalizers; where a layer has others, "
        "outputs change",
        f"{tmp_path / 'out.pth'} is written",
    ]


def test_what_belongs_to_the_training_before_is_dropped_and_said(tmp_path, model, capsys):
    classes = {"classes": ["a"], "sigmas": np.ones(3)}
    contents = {
        "state_dict": model.state_dict(),
        "optimizer": {"state": {}},
        "param_schedulers": [],
        "meta": {"epoch": 3, "cfg": "model = dict()", "dataset_meta": classes},
        "iteration": 5,
        "classes": ["a", "b"],
    }
    write(contents, tmp_path / "in.pth")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *HEAD) == 0
    kept = read(tmp_path / "out.pth")
    assert kept.keys() == {"state_dict", "meta", "classes"}
    assert kept["meta"].keys() == {"dataset_meta"} and kept["classes"] == ["a", "b"]
    assert kept["meta"]["dataset_meta"]["classes"] == ["a"]
    dropped = "optimizer, param_schedulers, iteration, meta.epoch, meta.cfg"
    words = f"not copied (of the training, or this format cannot store it): {dropped}"
    assert words in capsys.readouterr().out.splitlines()
    assert run(tmp_path / "in.pth", tmp_path / "out.safetensors", *HEAD) == 0
    assert "optimizer, param_schedulers, meta, iteration, classes" in capsys.readouterr().out


def test_other_weights_of_the_same_model_are_dropped_and_said(tmp_path, model, capsys):
    state = model.state_dict()
    averaged = {f"module.{name}": tensor.clone() for name, tensor in state.items()}
    listed = {"shadow_params": [*averaged.values()], "decay": 0.9}
    others = {"shadow": averaged, "nested": {"ema": listed}, "optimizers": [1]}
    score = {"best": np.float64(0.9), "rgb": [1, 2, 3]}
    write({"model": state, **others, "score": score}, tmp_path / "in.pth")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *HEAD) == 0
    assert read(tmp_path / "out.pth").keys() == {"model", "score"}
    assert ": shadow, nested, optimizers\n" in capsys.readouterr().out


def test_versions_of_modules_are_kept(tmp_path, model):
    write({"model": model.state_dict()}, tmp_path / "in.pth")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *HEAD) == 0
    assert read(tmp_path / "out.pth")["model"]._metadata == model.state_dict()._metadata


def test_words_beside_the_tensors_of_safetensors_are_kept_or_dropped_and_said(
    tmp_path, model, capsys
):
    torch_files = pytest.importorskip("safetensors.torch", reason="its files need safetensors")
    path, words = tmp_path / "in.safetensors", {"format": "pt", "license": "CC0"}
    torch_files.save_file(model.state_dict(), path, words)
    assert run(path, tmp_path / "out.safetensors", *HEAD) == 0
    assert read_metadata(tmp_path / "out.safetensors") == words
    assert "not copied" not in capsys.readouterr().out
    assert run(path, tmp_path / "out.pth", *HEAD) == 0
    assert ": __metadata__ (license)\n" in capsys.readouterr().out
    write(model.state_dict(), tmp_path / "plain.safetensors")
    assert read_metadata(tmp_path / "plain.safetensors") == {"format": "pt"}


def test_safetensors_of_tied_tensors_and_of_what_is_none(tmp_path, model, x, capsys):
    pytest.importorskip("safetensors", reason="its files need safetensors")
    state = model.state_dict()
    others = {"tied": state["head.fc.weight"], "part": state["head.fc.weight"][:, 3:]}
    path, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    write({"model": {**state, **others, "version": 3, "head.norm._extra_state": None}}, path)
    assert run(path, out, *HEAD) == 0
    assert ": version, head.norm._extra_state\n" in capsys.readouterr().out
    written = read(out)
    assert all(torch.equal(written.pop(name), tensor) for name, tensor in others.items())
    check_head(written, model, x)


def test_what_is_no_tensor_stays_but_in_safetensors(tmp_path, model, x, capsys):
    state = {"classes": np.array(["cat"]), **model.state_dict(), 7: torch.ones(3)}
    path, state[8] = tmp_path / "in.pth", "eight"
    write(state, path)
    assert run(path, tmp_path / "out.pth", *HEAD) == 0
    written = read(tmp_path / "out.pth")
    assert written.pop("classes").tolist() == ["cat"] and written.pop(8) == "eight"
    assert written.pop(7).tolist() == [1, 1, 1]
    check_head(written, model, x)
    pytest.importorskip("safetensors", reason="its files need safetensors")
    capsys.readouterr()
    assert run(path, tmp_path / "out.safetensors", *HEAD) == 0
    assert ": classes, 7, 8\n" in capsys.readouterr().out
    check_head(read(tmp_path / "out.safetensors"), model, x)
    write({"model": model.state_dict(), 7: 8}, path)
    assert run(path, tmp_path / "out.safetensors", *HEAD, "--overwrite") == 0
    assert ": 7\n" in capsys.readouterr().out


def test_there_and_back(tmp_path, model, capsys):
    write(model.state_dict(), tmp_path / "gn.pth")
    options = ("--to", "ILMGN(key_group_size=8)", "--match", "*")
    assert run(tmp_path / "gn.pth", tmp_path / "ilm.pth", *options) == 0
    state = read(tmp_path / "ilm.pth")
    assert state["head.norm.encode.weight"].shape == (2, 4)
    assert run(tmp_path / "ilm.pth", tmp_path / "back.pth", "--revert") == 0
    back = read(tmp_path / "back.pth")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    state["head.norm.decode_var.weight"][0, 0] = 1
    write(state, tmp_path / "ilm.pth")
    assert run(tmp_path / "ilm.pth", tmp_path / "back.pth", "--revert", "--overwrite") == 0
    printed = capsys.readouterr().out
    assert "the decoders are not zero (1):\n    head.norm\n" in printed
    assert "head.norm.encode.weight" in read(tmp_path / "back.pth")


def test_sums_of_sns_released_code_are_divided(tmp_path):
    state = {
        **{f"n.{name}": torch.ones(1, 4, 1, 1) for name in ("weight", "bias")},
        **{f"n.{name}": torch.ones(3) for name in ("mean_weight", "var_weight")},
        "n.running_mean": torch.full((1, 4, 1), 6.0),
        "n.running_var": torch.full((1, 4, 1), 15.0),
    }
    write(state, tmp_path / "in.pth")
    options = ("--to", "SN", "--summed-batches", "3")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *options) == 0
    found = read(tmp_path / "out.pth")
    assert found["n.running_mean"].tolist() == [2.0] * 4
    assert found["n.running_var"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "protocol", [2, 4, *(pytest.param(n, marks=pytest.mark.wide) for n in (3, 5))]
)
def test_pickles_of_every_protocol_are_read_by_a_new_process(root, tmp_path, model, x, protocol):
    """In another, what was read before may decide what an array is taken for."""
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    contents = {"model": arrays, "__author__": "zoo"}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(contents, protocol))
    for source, target in (("in.pkl", "out.pkl"), ("out.pkl", "back.pkl")):
        change = HEAD if source == "in.pkl" else ("--revert",)
        words = [root / "tools" / "convert.py", tmp_path / source, tmp_path / target, *change]
        done = fresh.run([sys.executable, *words])
        assert done.returncode == 0, done.stderr
    check_head(read(tmp_path / "out.pkl")["model"], model, x)


def test_arrays_of_another_order_of_bytes_are_converted(tmp_path, model, x):
    arrays = {name: tensor.numpy().astype(">f4") for name, tensor in model.state_dict().items()}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=5))
    assert run(tmp_path / "in.pkl", tmp_path / "out.pth", *HEAD) == 0
    check_head(read(tmp_path / "out.pth")["model"], model, x)


def test_expanded_tensors_are_converted(tmp_path, model, x):
    state = model.state_dict()
    for name in ("backbone.conv.bias", "head.norm.weight"):
        value = torch.full((1,), 0.5).expand(32)
        state[name] = value
        model.get_parameter(name).data.fill_(0.5)
    torch.save(state, tmp_path / "in.pth")
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *HEAD) == 0
    check_head(read(tmp_path / "out.pth"), model, x)


WALK = """
import pickle, sys, torch
d = {}
for _ in range(60):
    d = {"a": d, "b": d}
loop = {}
loop["loop"] = loop
norm = {"n.weight": torch.ones(32), "n.bias": torch.ones(32)}
torch.save({"model": norm, "twice": d, "loop": loop}, sys.argv[1])
"""


def test_entries_that_hold_themselves_are_walked_once(root, tmp_path):
    """Where the user trusts a file, which is not checked for these."""
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    fresh.run([sys.executable, "-c", WALK, source], check=True)
    words = [root / "tools" / "convert.py", source, target, "--to", "ILMGN", "--match", "n"]
    options = {"capture_output": True, "text": True, "timeout": 100}
    done = fresh.run([sys.executable, *words], **options)
    assert done.returncode == 2 and "a container holds itself" in done.stderr
    assert done.stderr.count("\n") == 1
    words.append("--unsafe")
    done = fresh.run([sys.executable, *words], **options)
    assert done.returncode == 0, done.stderr
    assert "n.encode.weight" in torch.load(target, weights_only=False)["model"]


def test_batchnorm_becomes_a_norm_of_each_image_on_request(tmp_path, capsys):
    plain = randomized(Model(nn.BatchNorm2d(32), nn.BatchNorm2d(24)))
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.pth", "--to", "ILMIN"
    assert "give replacing='BN' to replace it" in refused(capsys, *words)
    assert run(*words, "--replacing", "BN") == 0
    assert "note, outputs change: each image's own statistics" in capsys.readouterr().out
    found = read(tmp_path / "out.pth")
    assert found["head.norm.encode.weight"].shape == (2, 3)  # key groups of 8
    assert torch.equal(found["head.norm.weight"], plain.head["norm"].weight)


# ---- mistakes


def refused(capsys, *words):
    """The one line that a mistake prints."""
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_input_is_never_overwritten(tmp_path, model, capsys):
    path = tmp_path / "in.pth"
    write(model.state_dict(), path)
    (tmp_path / "link.pth").symlink_to(path)
    before = path.read_bytes()
    for other in (path, tmp_path / "link.pth"):
        assert "is INPUT; give another file" in refused(capsys, path, other, *HEAD, "--overwrite")
    assert path.read_bytes() == before


def test_output_is_replaced_only_if_asked_for_and_only_when_something_was_converted(
    tmp_path, model, x, capsys
):
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    write(model.state_dict(), path)
    out.write_text("before")
    assert "add --overwrite" in refused(capsys, path, out, *HEAD)
    error = refused(capsys, path, out, "--to", "ILMGN", "--overwrite")
    assert "nothing in" in error and "match it" in error
    assert "fits none of the 2 norms" in refused(
        capsys, path, out, "--to", "ILMGN", "--match", "roi_heads.*", "--overwrite"
    )
    assert out.read_text() == "before"
    assert run(path, out, *HEAD, "--overwrite") == 0
    check_head(read(out), model, x)


def test_code_is_refused_unless_it_is_trusted(tmp_path, model, x, capsys):
    trap, path, out = tmp_path / "trap", tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"model": model.state_dict(), "extra": Harmful(trap)}, path)
    error = refused(capsys, path, out, *HEAD)
    assert str(path) in error and error.endswith("give --unsafe\n")
    assert not trap.exists() and not out.exists()
    # The second is the older name of the option.
    for option in ("--unsafe", "--unsafe-checkpoints"):
        assert run(path, out, *HEAD, option, "--overwrite") == 0
        assert trap.exists()
        trap.rmdir()
    check_head(torch.load(out, weights_only=False)["model"], model, x)


@pytest.mark.parametrize(
    "contents, words",
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 no more", "cannot be read"),
        (None, "does not exist"),
        ({"epoch": 3}, "holds no state dict, neither under 'model'"),
        ([1, 2], "holds no state dict"),
        ({"blobs": {"conv1_w": [1]}}, "but 'blobs'"),
        ({0: torch.ones(3)}, "holds no state dict"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, capsys, contents, words):
    path = tmp_path / "in.pth"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    error = refused(capsys, path, tmp_path / "out.pth", *HEAD)
    assert words in error and str(path) in error
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("kind", NOT_DENSE)
def test_values_that_are_no_dense_tensors_are_named(tmp_path, model, capsys, kind):
    value, words = NOT_DENSE[kind]
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"state_dict": {**model.state_dict(), "head.norm.weight": value}}, path)
    error = refused(capsys, path, out, *HEAD)
    assert f"'{path}': head.norm.weight is a {words}, expected a dense tensor" in error
    assert not out.exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--to", "GN"], "to='GN' is unknown; set it to one of 'ILMGN'"),
        (["--to", "ILMGN(hidden"], "NORM 'ILMGN(hidden' cannot be read"),
        (["--to", "ILMGN(hiden=2)"], "unknown option 'hiden'"),
        (["--to", "ILMGN(replacing='BN')"], "unknown option 'replacing'"),
        (["--to", "ILMGN", "KEY", "VALUE"], "KEY VALUE needs --config-file"),
        (["--to", "SN", "--summed-batches", "0"], "batches=0"),
        (
            ["--to", "SN", "--summed-batches", "3"],
            "INPUT has no running statistics of SN's released",
        ),
        (["--revert", "--summed-batches", "3"], "--summed-batches 3: INPUT has no running stat"),
        (["--to", 'ILMGN(dtype="float16")'], "dtype comes from each norm"),
        (["--to", 'ILMGN(init="default")'], "init='default': a converted layer starts"),
        (["--config-file", "nowhere.yaml"], "config file 'nowhere.yaml' does not exist"),
        (["--config-file", "nowhere.yaml", "--match", "*"], "--match with --config-file"),
        (["--to", "SN", "--recalibrate", "images"], "--recalibrate images needs --config-file"),
        (
            ["--config-file", "nowhere.yaml", "--recalibrate", "images", "--part", "head"],
            "the model's other parts would have random weights",
        ),
        (["--revert", "--batch-size", "2"], "--batch-size 2 needs --recalibrate"),
        (["--revert", "--replacing", "BN"], "--replacing BN needs --to"),
        (["--to", "ILMGN", "--replacing", "BN"], "GN or IN, but BatchNorm is replaced"),
    ],
)
def test_options_that_do_not_fit(tmp_path, model, capsys, options, words):
    write(model.state_dict(), tmp_path / "in.pth")
    assert words in refused(capsys, tmp_path / "in.pth", tmp_path / "out.pth", *options)
    assert not (tmp_path / "out.pth").exists()


def test_what_to_convert_to_must_be_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run(tmp_path / "in.pth", tmp_path / "out.pth")
    assert exit.value.code == 2
    assert "one of the arguments --config-file --to --revert is required" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.onnx", "out", "out.PTH"])
def test_an_output_of_an_unknown_format_is_refused(tmp_path, model, capsys, name):
    write(model.state_dict(), tmp_path / "in.pth")
    error = refused(capsys, tmp_path / "in.pth", tmp_path / name, *HEAD)
    assert "must end with .pth, .pt" in error and not (tmp_path / name).exists()


def test_a_folder_is_no_output(tmp_path, model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(model.state_dict(), "in.pth")
    for out in (tmp_path, ".", ""):
        assert "is a folder; give a file" in refused(capsys, "in.pth", out, *HEAD, "--overwrite")


def test_outputs_that_cannot_be_written(tmp_path, model, capsys):
    write(model.bfloat16().state_dict(), tmp_path / "in.pth")
    (tmp_path / "file.txt").touch()
    for out in ("none/out.pth", "file.txt/out.pth"):
        error = refused(capsys, tmp_path / "in.pth", tmp_path / out, *HEAD)
        assert out in error and "is not in a folder that exists" in error
    error = refused(capsys, tmp_path / "in.pth", tmp_path / f"{'long' * 65}.pth", *HEAD)
    assert "cannot be written" in error
    assert "cannot be read" in refused(capsys, tmp_path / f"{'long' * 65}.pth", "out.pth", *HEAD)
    error = refused(capsys, tmp_path / "in.pth", tmp_path / "out.pkl", *HEAD)
    assert "is of torch.bfloat16, which .pkl cannot hold; write .pth" in error
    assert run(tmp_path / "in.pth", tmp_path / "out.pth", *HEAD) == 0
    found = read(tmp_path / "out.pth")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
