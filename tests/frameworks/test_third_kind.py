"""A third kind of config, JSON of a small classifier, which no file of the package knows."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from ilm_plugins import NORMS
from ilm_plugins.__main__ import main
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import config_files, read_record
from ilm_plugins.frameworks.config import OpenConfig
from ilm_plugins.frameworks.length import Length
from ilm_plugins.layers import parse_call


class OpenJson(OpenConfig):
    framework, packages, checkpoint_entry = "json", ("torch",), "model"
    norm_keys, norm_names, examples = ["BN"], ("norm",), ("model.norm",)
    keys: ClassVar = {name: name for name in ("seed", "folder", "weights")}
    test_set, amp = ("test",), "amp"

    @classmethod
    def read(cls, path, overrides, device, amp):
        config = json.loads(Path(path).read_text())
        for key, value in (override.split("=", 1) for override in overrides):
            *above, name = key.split(".")
            (config[above[0]] if above else config)[name] = value
        return cls(path, config, device)

    @classmethod
    def register(cls, datasets):
        pass

    def _build(self):
        key, options = parse_call(self.config["model"]["norm"])
        norm = {"BN": nn.BatchNorm2d, **NORMS}[key](32, **options)
        return nn.Sequential(nn.Conv2d(3, 32, 1), norm)

    def _is_unknown(self, key, norm, error):
        return norm in error.args

    def length(self, processes=1):
        return Length("iterations", 2, 4)

    def classes_of_test(self):
        return None

    def unit(self, metric):
        return "fraction"

    def run(self, record):
        record.start(self.length(), seed=int(self.config["seed"]))
        torch.save({self.checkpoint_entry: self.build_model().state_dict()}, "out/last.pth")
        record.point(2, loss=1.0)
        record.finish({"top1": 0.5}, images=4)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("ilm_plugins.frameworks.json.config")
    module.kind_of = lambda path: OpenJson
    monkeypatch.setitem(sys.modules, "ilm_plugins.frameworks.json", ModuleType("json"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(config_files.PACKAGES, "json", "torch")
    monkeypatch.setattr("ilm_plugins.frameworks.config.framework_of", lambda path: "json")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as --num-gpus 0 sets it
    config = {"model": {"norm": "BN"}, "seed": 0, "folder": "out", "weights": "", "test": ""}
    Path("net.json").write_text(json.dumps(config))
    return "net.json"


def test_it_is_trained(path):
    assert main(["train", "--config-file", path, "--num-gpus", "0", "model.norm=EN", "seed=3"]) == 0
    record = read_record("out")
    assert (record["framework"], record["seed"], record["run"]) == ("json", 3, 2)
    assert record["norms"] == {"model.norm": "EN"}
    assert record["metrics"] == {"": {"top1": 0.5}}


def test_it_has_no_augmented_test(path, capsys):
    assert main(["train", "--config-file", path, "--num-gpus", "0", "--eval-only", "--tta"]) == 2
    assert "--tta is for MMEngine's configs" in capsys.readouterr().err


def test_its_comparison_is_planned(path, capsys):
    assert main(["compare", path, "BN", "EN", "--num-gpus", "0", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "EN: 1 ExemplarNorm" in printed
    assert "2 iterations of 4 images" in printed


def test_a_checkpoint_is_converted_to_its_norms(path, capsys):
    torch.save({"model": OpenJson.read(path, (), "cpu", False).build_model().state_dict()}, "a.pth")
    words = "convert", "a.pth", "b.pth", "--config-file", path, "model.norm=EN"
    assert main([*words]) == 0
    assert "weight" in {name.rpartition(".")[2] for name in torch.load("b.pth")["model"]}


def test_an_unknown_norm_is_told_with_near_ones(path):
    opened = OpenJson.read(path, ["model.norm=NoNorm"], "cpu", False)
    with pytest.raises(UserError, match="unknown norm"), opened.explaining_norms():
        raise KeyError("NoNorm")
