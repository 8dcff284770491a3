"""detectron2's checkpoints: zoo files, conversion for a config, code, and what a kill leaves."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.modeling.backbone.resnet import BasicBlock

from close import assert_close
from ilm_plugins import ILMGroupNorm
from ilm_plugins.__main__ import main
from ilm_plugins.checkpoints import CheckpointError, loading, write
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.detectron2.checkpoints import Checkpointer
from swaps import randomized
from workers import Harmful

FOLDER = "configs/detectron2/shapes"
GN, ILMGN = (f"{FOLDER}/mask_rcnn_R_18_FPN_{norm}.yaml" for norm in ("gn", "ilmgn"))


@pytest.fixture
def plain(root):
    torch.manual_seed(0)
    return randomized(open_config(str(root / GN)).build_model()).eval()


def run(*words):
    return main(["convert", *map(str, words)])


def test_a_zoo_checkpoint_of_gn_computes_the_same(root, plain, tmp_path, capsys):
    state = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
    path, out = tmp_path / "model_final.pkl", tmp_path / "ilmgn.pkl"
    write({"model": state, "__author__": "Detectron2 Model Zoo"}, path)
    assert run(path, out, "--config-file", root / ILMGN) == 0
    printed = capsys.readouterr().out
    assert "converted, GN or IN -> ILMGroupNorm (4):" in printed
    assert "left" not in printed and "missing" not in printed
    model = open_config(str(root / ILMGN)).build_model().eval()
    Checkpointer(model).load(str(out))
    assert type(model.roi_heads.box_head.conv1.norm) is ILMGroupNorm
    boxes = torch.randn(2, 64, 7, 7, dtype=torch.float64)
    before, after = (m.double().roi_heads.box_head(boxes) for m in (plain, model))
    assert_close(after, before, 2**20)


def test_a_part_is_named_in_full(root, plain, tmp_path, capsys):
    write(plain.backbone.bottom_up.state_dict(), tmp_path / "in.pth")
    config = ["--config-file", root / GN, "MODEL.RESNETS.NORM", "ILMGN"]
    words = [tmp_path / "in.pth", tmp_path / "out.pth", *config]
    for options in ([], ["--part", "backbone"]):
        assert run(*words, *options) == 2
        assert "give --part backbone.bottom_up" in capsys.readouterr().err
    assert run(*words, "--part", "backbone.bottom_up") == 0


@pytest.mark.parametrize("part, near", [("backbon", "backbone"), ("box_head", "roi_heads.box_hea")])
def test_an_unknown_part_is_told_with_near_ones(root, plain, tmp_path, capsys, part, near):
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.pth", "--config-file", root / ILMGN
    assert run(*words, "--part", part) == 2
    told = capsys.readouterr().err
    assert f"--part {part}: the model has no such part; near ones are " in told
    assert near in told and ", ," not in told


def test_a_config_has_what_a_state_dict_lacks(root, plain, tmp_path, capsys):
    write(plain.state_dict(), tmp_path / "in.pth")
    words = tmp_path / "in.pth", tmp_path / "out.pth"
    assert run(*words, "--config-file", root / ILMGN) == 0
    assert "eps" not in capsys.readouterr().out
    assert run(*words, "--overwrite", "--to", "ILMGN", "--match", "*") == 0
    assert "a state dict has no eps" in capsys.readouterr().out


def load(path, contents):
    model = torch.nn.Linear(2, 2)
    write(contents, path)
    with loading():
        Checkpointer(model).load(str(path))
    return model


def test_files_of_caffe2_are_loaded(tmp_path):
    arrays = {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    blobs = {**arrays, "weight_momentum": np.ones(1)}
    for contents in (blobs, {"blobs": blobs, "cfg": "MODEL: {}"}):
        assert load(tmp_path / "caffe2.pkl", contents).weight.eq(1).all()


def test_a_file_of_pycls_is_loaded(tmp_path, monkeypatch):
    state = {
        "weight": torch.ones(2, 2),
        "bias": torch.zeros(2),
        "num_batches_tracked": torch.ones(1),
    }
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    assert load(tmp_path / "c.pyth", {"model_state": state}).weight.eq(1).all()


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_code_is_refused(tmp_path, suffix):
    contents = {"model": {"weight": Harmful(tmp_path / "ran")}, "__author__": "nobody"}
    with pytest.raises(CheckpointError, match=r"os\.makedirs"):
        load(tmp_path / f"c{suffix}", contents)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_weights_of_another_model_are_refused(tmp_path, suffix):
    other = {"model": {"fc.weight": np.ones(3), "bias": np.ones(3)}, "__author__": "nobody"}
    if suffix == ".pth":
        other["model"] = {name: torch.tensor(value) for name, value in other["model"].items()}
    with pytest.raises(CheckpointError, match="is of another model"):
        load(tmp_path / f"other{suffix}", other)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_one_warning_says_that_weights_must_be_converted(tmp_path, caplog, suffix):
    caplog.set_level("WARNING", logger="fvcore")
    state = {f"conv1.norm.{k}": v for k, v in torch.nn.BatchNorm2d(32).state_dict().items()}
    if suffix == ".pkl":  # as of the model zoo, whose names detectron2 matches
        state = {name: tensor.numpy() for name, tensor in state.items()}
    zoo = {"model": state, "__author__": "zoo", "matching_heuristics": True}
    write(zoo, tmp_path / f"bn{suffix}")
    for norm in ("EN", "BN"):
        caplog.clear()
        Checkpointer(BasicBlock(32, 32, norm=norm)).load(str(tmp_path / f"bn{suffix}"))
        told = [r.message for r in caplog.records if "by the command convert" in r.message]
        assert len(told) == (norm != "BN")
        assert all("1 layers, such as conv1.norm, which keep" in text for text in told)


def test_a_killed_save_or_one_of_infinite_weights_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_1", iteration=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    broken = torch.nn.Linear(2, 2)
    broken.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="infinite"):
        Checkpointer(broken, str(tmp_path)).save("model_2")

    def cut(contents, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut)
    for name in ("model_1", "model_2"):
        with pytest.raises(KeyboardInterrupt):
            checkpointer.save(name, iteration=2)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1
