"""MMEngine's checkpoints: conversion for a config, code in them, and what a kill leaves."""

import pytest
import torch

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local

from ilm_plugins import ExemplarNorm
from ilm_plugins.checkpoints import CheckpointError, loading, read, write
from ilm_plugins.cli import convert
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.openmmlab.checkpoints import (
    AtomicFiles,
    check_fits,
    latest,
    use_safe_checkpoints,
)
from runs import MMENGINE_CONFIG
from swaps import change, randomized
from workers import Harmful


def run(*words):
    return convert.main([str(word) for word in words])


@pytest.fixture
def configs(tmp_path):
    """Configs of the small segmenter with BN and with EN."""
    norms = {"bn": 'dict(type="BN")', "en": 'dict(type="EN", reduction=8)'}
    for name, norm in norms.items():
        text = MMENGINE_CONFIG.replace('dict(type="ILMGN", num_groups=4)', norm)
        (tmp_path / f"{name}.py").write_text(text)
    return [str(tmp_path / f"{name}.py") for name in norms]


def save(model, path):
    write({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": ["a"]}}}, path)
    return path


# ---- conversion for a config


@torch.no_grad()
def test_batchnorm_is_found_under_the_name_of_its_type(configs, tmp_path, capsys):
    bn, en = configs
    plain = randomized(open_config(bn).build_model()).eval().double()
    assert run(save(plain, tmp_path / "bn.pth"), tmp_path / "en.pth", "--config-file", en) == 0
    printed = capsys.readouterr().out
    assert "left" not in printed and "missing" not in printed
    assert "    backbone.layer1.0.gn1\n" in printed and "    decode_head.convs.0.gn\n" in printed
    model, contents = open_config(en).build_model().eval().double(), read(tmp_path / "en.pth")
    assert contents["meta"] == {"dataset_meta": {"classes": ["a"]}}
    model.load_state_dict(contents["state_dict"])
    assert type(model.backbone.gn1) is ExemplarNorm
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert change(plain._forward(x), model._forward(x)) <= 1e-10


@torch.no_grad()
def test_a_converted_backbone_is_loaded_by_init_cfg(configs, tmp_path, capsys):
    bn, en = configs
    plain = randomized(open_config(bn).build_model()).eval().double().backbone
    words = [save(plain, tmp_path / "bn.pth"), tmp_path / "en.pth", "--config-file", en]
    assert run(*words) == 2
    assert "but of its backbone; give --part backbone" in capsys.readouterr().err
    assert run(*words, "--part", "backbone") == 0
    init = {"type": "Pretrained", "checkpoint": tmp_path / "en.pth"}
    overrides = [f"model.backbone.init_cfg.{key}={value}" for key, value in init.items()]
    model = open_config(en, overrides).build_model().eval().double()
    model.backbone.init_weights()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for before, after in zip(plain(x), model.backbone(x), strict=True):
        assert change(before, after) <= 1e-10


# ---- loading


class Attribute:
    """What MMEngine's own list of harmless functions would let a checkpoint do."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


@pytest.mark.parametrize("kind", ["call", "attribute"])
def test_code_is_refused(tmp_path, kind):
    use_safe_checkpoints()
    trap, path = tmp_path / "ran", str(tmp_path / "c.pth")
    torch.save({"state_dict": Harmful(trap) if kind == "call" else Attribute()}, path)
    with loading():
        with pytest.raises(CheckpointError, match="which may run code"):
            CheckpointLoader.load_checkpoint(path)
        with pytest.raises(Exception, match=r"makedirs|getattr"):
            load_from_local(path, "cpu")
    assert not trap.exists()


def test_a_history_of_losses_is_data(tmp_path):
    use_safe_checkpoints()
    path = str(tmp_path / "c.pth")
    torch.save({"a": HistoryBuffer([1.0, 2.0], [1, 1])}, path)
    # As MMEngine's own loader does, which removes at its end what it allowed.
    with torch.serialization.safe_globals([HistoryBuffer, getattr]):
        pass
    use_safe_checkpoints()
    with loading():
        assert CheckpointLoader.load_checkpoint(path)["a"].mean() == 1.5
        assert torch.load(path)["a"].mean() == 1.5, "as torch.hub reads what it downloaded"


def test_the_config_in_a_checkpoint_which_mmengine_would_run_is_left_out(tmp_path):
    use_safe_checkpoints()
    torch.save({"meta": {"config": "x = 1", "epoch": 3}}, tmp_path / "c.pth")
    assert CheckpointLoader.load_checkpoint(str(tmp_path / "c.pth"))["meta"] == {"epoch": 3}


def test_a_checkpoint_of_another_model_is_told():
    model = torch.nn.Linear(2, 2)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    check_fits("c.pth", model, {"state_dict": state})
    with pytest.raises(CheckpointError, match="is of another model"):
        check_fits("c.pth", model, {"fc.weight": torch.ones(2, 2)})


# ---- saving and resuming


def test_an_outdated_checkpoint_goes_when_its_successor_is_there(tmp_path, monkeypatch):
    old, new = tmp_path / "iter_1.pth", tmp_path / "iter_2.pth"
    files = AtomicFiles()
    files.put(b"old", old)
    files.remove(str(old))
    AtomicFiles().put(b"figures", tmp_path / "figures.json")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        AtomicFiles().put(b"new", new)
    assert old.read_bytes() == b"old" and not new.exists()
    AtomicFiles().put(b"new", new)
    assert not old.exists() and new.read_bytes() == b"new"


def test_the_latest_checkpoint_is_found_where_its_name_was_not_written(tmp_path):
    assert latest(tmp_path) is None
    for name in ("epoch_9.pth", "epoch_10.pth", "best_mIoU_iter_77.pth", "epoch_11.pth.partial"):
        (tmp_path / name).touch()
    for named in (None, "", str(tmp_path / "epoch_8.pth")):
        if named is not None:
            (tmp_path / "last_checkpoint").write_text(named)
        assert latest(tmp_path) == str(tmp_path / "epoch_10.pth")
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_9.pth")
    assert latest(tmp_path) == str(tmp_path / "epoch_9.pth")
