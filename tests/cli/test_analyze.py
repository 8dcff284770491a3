"""tools/analyze.py on models of torchvision and timm, and its mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
pytest.importorskip("sklearn", reason="maps of images need scikit-learn")
pytest.importorskip("torchvision", reason="needs torchvision's models")

import numpy as np
from PIL import Image

import fresh
from ilm_plugins.checkpoints import write
from ilm_plugins.cli import analyze, environment, named_models
from ilm_plugins.layers import ExemplarNorm
from runs import read_csv, write_class_folders

pytestmark = pytest.mark.usefixtures("unrendered")

MODEL = "torchvision:resnet18"
EN = ("--model", MODEL, "--norm", "EN", "--num-classes", "2", "--size", "32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of three images."""
    return write_class_folders(tmp_path_factory.mktemp("images"), each=3, height=40)


def checkpoint(path, model=MODEL, norm="EN", seed=0):
    """One of a resnet18 of two classes, whose ratios are not uniform."""
    torch.manual_seed(seed)
    inference = named_models.load(model, norm, 2, 32, "cpu")
    for layer in inference.model.modules():
        if isinstance(layer, ExemplarNorm):
            torch.nn.init.normal_(layer.ratio.weight, std=0.5)
    write({"state_dict": inference.model.state_dict()}, path)
    return inference


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "epoch_3.pth"
    return path, checkpoint(path)


def run(*words):
    return analyze.main([str(word) for word in words])


def test_ratios_of_a_torchvision_model(folder, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "commit", lambda: "abc")
    path, inference = trained
    options = ("--checkpoint", path, "--output", tmp_path / "out", "--batch-size", 4)
    assert run("ratios", folder, *EN, *options, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert (
        f"6 images of {folder}, each: ImageClassification( crop_size=[32] resize_size=[32]"
        in printed
    )
    assert "resnet18, epoch_3.pth, 6 images" in printed and "over 20 layers" in printed
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.endswith("\nat commit abc\n") and "over 20 layers" in summary

    # The first layer's, by hand.
    model = inference.model.eval()
    images = [np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))]
    x = torch.stack([torch.tensor(i[4:36]).permute(2, 0, 1) / 255 for i in images])
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    expected = model.bn1.ratios(model.conv1((x - mean) / std))
    found = read_csv(tmp_path / "out" / "ratios_by_image.csv")
    assert [row["image"] for row in found][:4] == [
        "cat/0.png",
        "cat/1.png",
        "cat/2.png",
        "dog/0.png",
    ]
    for row, ratios in zip(found, expected, strict=True):
        assert [float(row[f"bn1/{n}"]) for n in ("IN", "LN", "BN")] == pytest.approx(
            ratios.tolist(), abs=1e-4
        )
    layers = [row["layer"] for row in read_csv(tmp_path / "out" / "ratios_by_layer.csv")]
    assert list(dict.fromkeys(layers))[-3:] == [
        "layer4.0.downsample.1",
        "layer4.1.bn1",
        "layer4.1.bn2",
    ]


def test_omega_of_a_timm_model_with_layers_and_images_chosen(folder, tmp_path, capsys):
    pytest.importorskip("timm", reason="needs timm's models")
    norm = "ILMGN(key_group_size=8)"
    checkpoint(tmp_path / "a.pth", "timm:resnet18", norm)
    options = ("--model", "timm:resnet18", "--norm", norm, "--num-classes", 2, "--size", 32)
    out = ("--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "out")
    assert run("omega", folder, *options, *out, "--match", "layer1.*", "--limit", 4) == 0
    found = read_csv(tmp_path / "out" / "rescaling_by_layer.csv")
    assert {row["layer"] for row in found} == {f"layer1.{i}.bn{j}" for i in (0, 1) for j in (1, 2)}
    assert len(read_csv(tmp_path / "out" / "rescaling_by_image.csv")) == 4
    assert "4 images of" in capsys.readouterr().out


def test_dynamics_are_in_the_order_of_steps(folder, tmp_path):
    for step in (10, 9):
        checkpoint(tmp_path / f"epoch_{step}.pth", seed=step)
    files = sorted(tmp_path.glob("*.pth"))
    assert [f.name for f in files] == ["epoch_10.pth", "epoch_9.pth"]
    out = tmp_path / "out"
    chosen = ("--match", "layer1.0.*", "--limit", 2)
    assert run("dynamics", folder, *EN, *chosen, "--output", out, "--checkpoint", *files) == 0
    found = read_csv(out / "dynamics_by_layer.csv")
    assert list(dict.fromkeys(row["epoch"] for row in found)) == ["9", "10"]
    assert found[0]["mean"] != found[6]["mean"]


def test_a_checkpoint_that_is_missing_is_told_before_any_pass(folder, trained, tmp_path, capsys):
    words = ("--output", tmp_path / "out", "--checkpoint", trained[0], "epoch_99.pth")
    assert run("dynamics", folder, *EN, *words) == 2
    assert "checkpoint 'epoch_99.pth' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dynamics_of_a_diverged_checkpoint_name_it(folder, trained, tmp_path, capsys):
    state = trained[1].model.state_dict()
    name = next(key for key in state if key.endswith("bn1.ratio.bias"))
    write({**state, name: state[name] / 0}, tmp_path / "epoch_4.pth")
    files = (trained[0], tmp_path / "epoch_4.pth")
    words = (folder, *EN, "--limit", 1, "--output", tmp_path / "out", "--checkpoint", *files)
    assert run("dynamics", *words) == 2
    line = rf"epoch_4\.pth': {name.removesuffix('.ratio.bias')} has infinite or NaN values"
    assert re.search(line, capsys.readouterr().err)


def test_dynamics_of_one_class_mapped_by_tsne(folder, trained, tmp_path, capsys):
    chosen = ("--classes", "dog", "--embedding", "tsne", "--match", "layer1.*")
    words = ("dynamics", folder, *EN, *chosen, "--output", tmp_path / "out")
    assert run(*words, "--checkpoint", trained[0]) == 0
    assert f"3 images of {folder.name} (dog)" in capsys.readouterr().out
    found = read_csv(tmp_path / "out" / "dynamics_map.csv")
    assert [row["image"] for row in found] == ["dog/0.png", "dog/1.png", "dog/2.png"]
    assert {row["class"] for row in read_csv(tmp_path / "out" / "dynamics_by_class.csv")} == {"dog"}


def test_reports_are_compared(folder, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ("--checkpoint", trained[0], "--match", "layer1.*")
    for name, limit in (("a", 4), ("b", 6)):
        out = (f"--output=~/{name}", "--limit", limit)
        assert run("ratios", folder, *EN, *words, *out) == 0
    assert run("compare", "~/a", tmp_path / "b", "--output=~/both") == 0
    assert not Path("~").exists()
    printed = capsys.readouterr().out
    assert f"2: resnet18, epoch_3.pth, 6 images of {folder.name}\n" in printed
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"comparison.png", "summary.txt"}


GOOD = (*EN, "--checkpoint", "CHECKPOINT")
MISTAKES = {
    "no layers of the kind": ("omega FOLDER", GOOD, "no ILM or AssocNorm layer, its norms are Exe"),
    "an unknown layer": ("ratios FOLDER", (*GOOD, "--match", "norm*"), "fits none of the 20 norms"),
    "an unreadable image": ("ratios BROKEN", GOOD, r"1\.png is unreadable"),
    "a checkpoint of another model": (
        "ratios FOLDER",
        (*EN[:4], "--checkpoint", "CHECKPOINT"),
        r"does not fit: 2 of the model's \d+ tensors, such as fc\.weight, are missing",
    ),
    "no checkpoint": ("ratios FOLDER", (*EN, "--checkpoint", "NONE.pth"), "does not exist"),
    "a norm that is unknown": (
        "ratios FOLDER",
        ("--model", MODEL, "--norm", "XN", "--checkpoint", "CHECKPOINT"),
        "--norm 'XN' is unknown; give one of ILMGN",
    ),
    "no norm": (
        "ratios FOLDER",
        ("--model", MODEL, "--checkpoint", "CHECKPOINT"),
        "--model needs --norm",
    ),
    "no library": (
        "ratios FOLDER",
        ("--model", "resnet18", "--norm", "EN", "--checkpoint", "CHECKPOINT"),
        "give torchvision:NAME or timm:NAME",
    ),
    "no such model": (
        "ratios FOLDER",
        ("--model", "torchvision:resnet17", "--norm", "EN", "--checkpoint", "CHECKPOINT"),
        "torchvision:resnet17 cannot be built with norm_layer",
    ),
    "classes of a flat folder": (
        "ratios FOLDER/cat",
        (*GOOD, "--classes", "cat"),
        "has no class 'cat'; near ones are none",
    ),
    "overrides of no config": ("ratios FOLDER", (*GOOD, "--opts", "a=1"), "--opts with --model"),
    "a device that is not there": (
        "ratios FOLDER",
        (*GOOD, "--device", "cuda:99"),
        "--device cuda:99",
    ),
    "no config": (
        "ratios FOLDER",
        ("--config-file", "none.py", "--checkpoint", "CHECKPOINT"),
        "'none.py' does not exist",
    ),
    "a config and a norm": (
        "ratios FOLDER",
        ("--config-file", "none.py", "--norm", "EN", "--checkpoint", "CHECKPOINT"),
        "--norm is only for --model",
    ),
    "no step in a name": (
        "dynamics FOLDER",
        (*EN, "--checkpoint", "final.pth"),
        "no number in its",
    ),
    "a step twice": (
        "dynamics FOLDER",
        (*EN, "--checkpoint", "a/epoch_1.pth", "b/epoch_1.pth"),
        "have one step, 1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name, folder, trained, tmp_path, capsys):
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "1.png").write_bytes(b"no image")
    places = {"FOLDER": folder, "CHECKPOINT": trained[0], "BROKEN": tmp_path / "BROKEN"}
    first, options, message = MISTAKES[name]
    words = []
    for word in (*first.split(), "--output", tmp_path / "out", *options):
        head, slash, rest = str(word).partition("/")
        words.append(f"{places.get(head, head)}{slash}{rest}")
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line) and ": error: " in line
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "of a wrapper"])
@pytest.mark.parametrize("name", ["norm", "module"])
def test_weights_are_loaded_by_the_names_of_the_model(name, prefix, tmp_path):
    source, target = (torch.nn.ModuleDict({name: torch.nn.Linear(2, 3)}) for _ in range(2))
    state = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    write({"state_dict": state}, tmp_path / "a.pth")
    analyze.load_weights(target, tmp_path / "a.pth")
    torch.testing.assert_close(target[name].weight, source[name].weight, rtol=0, atol=0)


def test_nothing_is_overwritten(folder, trained, tmp_path, capsys):
    (tmp_path / "summary.txt").write_text("mine")
    assert run("ratios", folder, *EN, "--checkpoint", trained[0], "--output", tmp_path) == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["summary.txt"]


def test_images_that_the_model_cannot_take_are_named():
    def forward(images):
        raise RuntimeError("stack expects each tensor to be equal size")

    with pytest.raises(analyze.UserError, match=r"on 1 images of 8 x 5: RuntimeError: stack exp"):
        analyze.seed_forward(forward)([np.zeros((5, 8, 3), np.uint8)])


@pytest.mark.parametrize(
    "package",
    [
        "matplotlib",
        "sklearn",
        *(pytest.param(p, marks=pytest.mark.wide) for p in ("numpy", "PIL")),
    ],
)
def test_without_a_package_one_line_says_what_to_install(package, root, folder, trained, tmp_path):
    tool = root / "tools" / "analyze.py"
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None\n"
        f"runpy.run_path({str(tool)!r}, run_name='__main__')"
    )
    words = ("ratios", folder, *EN, "--checkpoint", trained[0], "--output", tmp_path / "out")
    # Without numpy torch has a warning of its own.
    options = ["-W", "ignore"] if package == "numpy" else []
    command = [sys.executable, *options, "-c", code, *map(str, words)]
    # Those two torch and torchvision have imported already in a fresh process.
    start = subprocess.run if package in ("numpy", "PIL") else fresh.run
    done = start(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("importing torch"))
    what = "the command analyze" if package in ("numpy", "PIL") else "drawing"
    install = "pip install 'ilm_plugins[analysis]'"
    assert line == f"analyze.py: error: {what} needs {package}: {install}"
