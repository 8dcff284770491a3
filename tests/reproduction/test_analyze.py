"""The command analyze, on a small model and on a config, and its mistakes."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("pandas", reason="needs the extra ilm_plugins[compare]")

import numpy as np
import pandas as pd
from PIL import Image

from helpers.close import assert_close
from helpers.workers import Harmful
from ilm_plugins import ExemplarNorm, ILMGroupNorm
from ilm_plugins.checkpoints import write
from ilm_plugins.frameworks import OpenConfig
from ilm_plugins.frameworks.config import Inference
from ilm_plugins.trust import ALLOW_CODE
from reproduction import analyze
from reproduction.__main__ import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of three images."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in (f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(3)):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / name)
    return folder


def network(seed=0):
    torch.manual_seed(seed)
    norms = [ExemplarNorm(8, reduction=4) for _ in range(2)]
    for norm in norms:
        nn.init.normal_(norm.ratio.weight, std=0.5)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *norms, ILMGroupNorm(8, 2, key_group_size=4))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config, which opens as the network; a checkpoint lies beside it."""

    class Opened(OpenConfig):
        def inference(self):
            model = network(seed=9)

            def forward(images):
                return model(torch.stack([torch.tensor(i).permute(2, 0, 1) / 255 for i in images]))

            return Inference("small", model, forward, 4, "as it is")

    def open_config(path, overrides, device):
        assert (path, device) == (str(tmp_path / "a.py"), "cpu" if overrides else None)
        return Opened(path, {}, "cpu")

    monkeypatch.setattr(analyze, "open_config", open_config)
    write({"state_dict": network().state_dict()}, tmp_path / "epoch_3.pth")
    (tmp_path / "a.py").write_text("model = dict(type='Opened')\n")
    return tmp_path / "a.py"


def run(*words):
    return main(["analyze", *map(str, words)])


@pytest.fixture
def analyzed(folder, config, tmp_path, capsys):
    """The output folder of ratios of one layer; what was printed, and the progress."""
    words = ("--config-file", config, "--checkpoint", tmp_path / "epoch_3.pth")
    words += "--output", tmp_path / "out", "--match", "1"
    (tmp_path / "out").mkdir()
    assert run("ratios", folder, *words, "--batch-size", "2") == 0
    return tmp_path / "out", *capsys.readouterr()


def test_ratios_are_those_of_the_checkpoint_for_each_image(analyzed, folder):
    found = pd.read_csv(analyzed[0] / "ratios_by_image.csv")
    assert found.image.tolist() == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    model, pixels = network().eval(), analyze.open_images(folder)
    x = torch.stack([torch.tensor(image).permute(2, 0, 1) / 255 for image in pixels])
    ratios = torch.tensor(found[["1/IN", "1/LN", "1/BN"]].to_numpy(), dtype=torch.float32)
    assert_close(ratios, model[1].ratios(model[0](x)), 64)


def test_progress_counts_batches(analyzed):
    assert "3/3" in analyzed[2], "six images in twos"


def test_the_norms_of_the_model_are_printed(analyzed):
    norms = "2 ExemplarNorm, 1 ILMGroupNorm (3 adaptive, 0 plain norms left)"
    assert f"norms of the model: {norms}\n" in analyzed[1]


def test_the_summary_is_printed_below_its_subject(analyzed, folder):
    out, printed, _ = analyzed
    assert f"6 images of {folder}, each: as it is\nsmall, epoch_3.pth, 6 images" in printed
    assert (out / "summary.txt").read_text() in printed


def test_omega_of_a_config_with_overrides(folder, config, tmp_path):
    words = ("--config-file", config, "--checkpoint", tmp_path / "epoch_3.pth", "--device", "cpu")
    assert run("omega", folder, *words, "--output", tmp_path / "out", "--opts", "a.b=1") == 0
    assert pd.read_csv(tmp_path / "out" / "rescaling_by_layer.csv").layer.unique().tolist() == [3]
    title = (tmp_path / "out" / "summary.txt").read_text()
    assert title.startswith("small a.b=1, epoch_3.pth, ")


def test_code_is_refused_unless_it_is_trusted(folder, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ALLOW_CODE, "1")
    path, trap = tmp_path / "epoch_1.pth", tmp_path / "ran"
    torch.save({"state_dict": network().state_dict(), "extra": Harmful(trap)}, path)
    words = "ratios", folder, "--config-file", config, "--checkpoint", path, "--output"
    assert run(*words, tmp_path / "out") == 2
    assert "--unsafe" in capsys.readouterr().err
    assert not trap.exists()
    assert run(*words, tmp_path / "out", "--unsafe") == 0
    assert trap.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ("ratios FOLDER --checkpoint other.pth", r"does not fit: 2 of .*, such as 0\.weight"),
        ("ratios FOLDER --checkpoint epoch_3.pth --output FOLDER", "is not empty"),
        ("ratios FOLDER --checkpoint epoch_3.pth --output other.pth", r"other\.pth is a file\)"),
        ("ratios FOLDER --checkpoint no.pth --output other.pth/below", r"other\.pth is a file\)"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words, message, folder, config, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write({k: v for k, v in network().state_dict().items() if k[0] != "0"}, "other.pth")
    words = words.replace("FOLDER", str(folder)).split()
    out = [] if "--output" in words else ["--output", "out"]
    assert run(*words, "--config-file", config, *out) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert ": error: " in error
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
