"""MMEngine's checkpoints: conversion for a config, code in them, and what a kill leaves."""

import hashlib
import os
import re
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from mmengine.runner.checkpoint import load_checkpoint, load_from_http, load_from_local

from helpers import processes
from helpers.close import assert_close
from helpers.swapped_norms import randomized
from helpers.trainings import MMENGINE_CONFIG
from helpers.workers import Built, Harmful
from ilm_plugins import ExemplarNorm
from ilm_plugins.__main__ import main
from ilm_plugins.checkpoints import CheckpointError, read, write
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.openmmlab.checkpoints import (
    AtomicFiles,
    latest,
    use_safe_checkpoints,
)
from ilm_plugins.trust import loading


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    """A folder with configs of one segmenter, bn.py and en.py, and the first's model and file."""
    folder = tmp_path_factory.mktemp("segmenters")
    for name, norm in (("bn", 'dict(type="BN")'), ("en", 'dict(type="EN", reduction=8)')):
        text = MMENGINE_CONFIG.replace('dict(type="ILMGN", num_groups=4)', norm)
        (folder / f"{name}.py").write_text(text)
    plain = randomized(open_config(str(folder / "bn.py")).build_model()).eval().double()
    write({"state_dict": plain.state_dict(), "meta": {"epoch": 1}}, folder / "bn.pth")
    return folder, plain


def convert(source, target, *words):
    return main(["convert", str(source), str(target), *map(str, words)])


@torch.no_grad()
def test_batchnorm_is_found_under_the_name_of_its_type(segmenters, tmp_path, capsys):
    folder, plain = segmenters
    config = folder / "en.py"
    arguments = folder / "bn.pth", tmp_path / "en.pth", "--names", "--config-file", config
    assert convert(*arguments) == 0
    printed = capsys.readouterr().out
    assert re.match(r"norms of the model: \d+ ExemplarNorm \(", printed)
    assert "skipped" not in printed
    assert "missing" not in printed
    assert "    backbone.layer1.0.gn1\n" in printed
    assert "    decode_head.convs.0.gn\n" in printed
    model = open_config(str(config)).build_model().eval().double()
    model.load_state_dict(read(tmp_path / "en.pth")["state_dict"])
    assert type(model.backbone.gn1) is ExemplarNorm
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(model._forward(x), plain._forward(x), 2**20)


def test_a_checkpoint_comes_back_to_the_names_of_batchnorm(segmenters, tmp_path):
    folder, plain = segmenters
    config = ("--config-file", folder / "en.py")
    assert convert(folder / "bn.pth", tmp_path / "en.pth", *config) == 0
    config = ("--config-file", folder / "bn.py")
    assert convert(tmp_path / "en.pth", tmp_path / "back.pth", *config) == 0
    assert_close(read(tmp_path / "back.pth")["state_dict"], dict(plain.state_dict()), 16)


@pytest.mark.parametrize("kind", ["call", "attribute"])
def test_code_is_refused(tmp_path, kind):
    use_safe_checkpoints()
    trap, path = tmp_path / "ran", str(tmp_path / "c.pth")
    # What MMEngine's own list of harmless functions would let a checkpoint do.
    attribute = Built(getattr, (HistoryBuffer, "__init__"))
    torch.save({"state_dict": Harmful(trap) if kind == "call" else attribute}, path)
    with loading():
        with pytest.raises(CheckpointError, match="which may run code"):
            CheckpointLoader.load_checkpoint(path)
        with pytest.raises(Exception, match=r"makedirs|getattr"):
            load_from_local(path, "cpu")
    assert not trap.exists()


def test_a_state_dict_in_an_entry_of_another_name_is_loaded(tmp_path):
    use_safe_checkpoints()
    path = str(tmp_path / "c.pth")
    torch.save({"epoch": 3, "model_state_dict": {"weight": torch.full((2, 2), 3.0)}}, path)
    loaded = torch.nn.Linear(2, 2, bias=False)
    load_checkpoint(loaded, path)
    assert loaded.weight.unique().tolist() == [3.0]


def test_a_file_of_several_models_reaches_code_that_chooses_one(tmp_path):
    use_safe_checkpoints()
    path = str(tmp_path / "c.pth")
    torch.save({name: {"weight": torch.ones(1)} for name in ("student", "teacher")}, path)
    assert CheckpointLoader.load_checkpoint(path).keys() == {"student", "teacher"}


MODEL = """
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

@MODELS.register_module()
class Student(BaseModel):
    def __init__(self, teacher):
        super().__init__()
        load_checkpoint(self, teacher)

    def forward(self, *inputs):
        pass
"""


def test_a_checkpoint_that_a_model_loads_while_it_is_built_is_read_safely(tmp_path):
    path = tmp_path / "teacher.pth"
    # MMEngine's own list of harmless functions has getattr.
    torch.save({"state_dict": Built(getattr, (HistoryBuffer, "__init__"))}, path)
    (tmp_path / "student.py").write_text(MODEL)
    config = tmp_path / "config.py"
    model = f"model = dict(type='Student', teacher={str(path)!r})"
    config.write_text(f"custom_imports = dict(imports=['student'])\n{model}\n")
    words = "convert", path, tmp_path / "out.pth", "--config-file", config
    paths = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = processes.run([sys.executable, "-m", "ilm_plugins", *words], env=environment)
    assert done.returncode == 2, done.stderr
    assert "teacher.pth' cannot be read" in done.stderr, done.stderr


@pytest.mark.parametrize("harmful", [True, False])
def test_a_downloaded_file_is_read_safely(tmp_path, harmful):
    use_safe_checkpoints()
    source, folder = tmp_path / "c.pth", tmp_path / "downloaded"
    contents = {"array": np.array([None] if harmful else [1.0])}
    torch.save(contents, source)
    refused = pytest.raises(CheckpointError, match=r"numpy\.dtype\('O8'\)")
    with loading(), refused if harmful else nullcontext():
        assert load_from_http(source.as_uri(), model_dir=str(folder))["array"].tolist() == [1.0]
    assert (folder / "c.pth").read_bytes() == source.read_bytes()


def test_a_downloaded_file_has_the_name_and_digest_that_are_asked(tmp_path):
    """As torch.hub's function does, which MMEngine offers under this name."""
    use_safe_checkpoints()
    torch.save({"a": 1}, tmp_path / "c.pth")
    digest = hashlib.sha256((tmp_path / "c.pth").read_bytes()).hexdigest()
    options = {"model_dir": tmp_path / "downloaded", "check_hash": True, "weights_only": True}
    url, right, wrong = (tmp_path / "c.pth").as_uri(), f"c-{digest[:8]}.pth", "c-00000000.pth"
    with loading():
        assert checkpoint.load_url(url, file_name=right, **options) == {"a": 1}
        with pytest.raises(RuntimeError, match="invalid hash value"):
            checkpoint.load_url(url, file_name=wrong, **options)
    assert [path.name for path in (tmp_path / "downloaded").iterdir()] == [right]


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
        assert torch.load(path)["a"].mean() == 1.5, "as MMEngine reads from a store"


def test_an_outdated_checkpoint_goes_when_its_successor_is_there(tmp_path, monkeypatch):
    old, new = tmp_path / "iter_1.pth", tmp_path / "iter_2.pth"
    files = AtomicFiles()
    files.put(b"old", old)
    files.remove(str(old))
    AtomicFiles().put(b"figures", figures := tmp_path / "new" / "figures.json")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        AtomicFiles().put(b"new", new)
    files.remove(figures)
    assert old.read_bytes() == b"old"
    assert not new.exists()
    assert not figures.exists()
    AtomicFiles().put(b"new", new)
    assert not old.exists()
    assert new.read_bytes() == b"new"
    files.remove(str(new))
    files.put(b"newer", new)  # of the same name
    assert new.read_bytes() == b"newer"


def test_the_latest_checkpoint_is_found_where_its_name_was_not_written(tmp_path):
    assert latest(tmp_path) is None
    for name in ("epoch_9.pth", "epoch_10.pth", "best_mIoU_iter_77.pth", "epoch_11.pth.partial"):
        (tmp_path / name).touch()
    for named in (None, "", str(tmp_path / "epoch_8.pth")):
        if named is not None:
            (tmp_path / "last_checkpoint").write_text(named)
        assert latest(tmp_path) == str(tmp_path / "epoch_10.pth")
    (tmp_path / "elsewhere").mkdir()
    for name in ("elsewhere/epoch_9.pth", "elsewhere/epoch_3.pth"):
        (tmp_path / name).touch()
    here, there = str(tmp_path / "epoch_9.pth"), str(tmp_path / "elsewhere/epoch_3.pth")
    named = {str(tmp_path / "elsewhere/epoch_9.pth"): here, there: there}
    for name, found in {**named, "s3://runs/epoch_9.pth": "s3://runs/epoch_9.pth"}.items():
        (tmp_path / "last_checkpoint").write_text(name)
        assert latest(tmp_path) == found
