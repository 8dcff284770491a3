"""Run folders and records of earlier versions of tools/reproduce.py stay what they were.

``run_of_e04ae0c.json`` has the lines of the text files in a run folder that commit e04ae0c wrote.
Settings stood in ``origin.json`` then, and the rest was read out of configs and logs.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("matplotlib", reason="needs matplotlib, of ilm_plugins[reproduction]")

from ilm_plugins.cli import environment
from ilm_plugins.reproduction import launch, record, registry
from ilm_plugins.reproduction import run as running
from ilm_plugins.reproduction.main import main
from reproduction.folders import write_test

FILES = json.loads(Path(__file__).with_name("run_of_e04ae0c.json").read_text())
TRAINING, TEST = "20261121_184139", "20261121_184151"
WORDS = ["en-5", "ResNet20/EN", "--seeds", "1", "--num-gpus", "0", "--data", "data/cifar10_jpeg"]
LR = "optim_wrapper.optimizer.lr=0.05"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The run folder, in another place than where it was written."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data/cifar10_jpeg"
    data.mkdir(parents=True)
    (data / "train.npz").touch()
    folder = tmp_path / "moved/en-5/ResNet20-EN/seed1"
    for name, lines in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    for epoch in (1, 2):
        (folder / f"epoch_{epoch}.pth").touch()
    return folder


def run(*words):
    return main(["run", *WORDS, "--work-dir", "moved", *words])


def test_a_whole_run_has_the_record_that_it_had(folder, capsys):
    before = json.loads((folder / "record.json").read_text())
    assert run("--epochs", "2", LR) == 0
    assert f"top-1 12.5 ({before['label']})" in capsys.readouterr().out
    after = json.loads((folder / "record.json").read_text())
    del before["batches"]
    assert {key: after[key] for key in before} == before
    assert not (folder / "output.log").exists()


def test_a_stopped_run_goes_on(folder, monkeypatch):
    started = []

    async def execute(run, now, words, _):
        started.append(words)
        running._write_launch(run, now)
        if words[0] == "--resume":
            (folder / "epoch_2.pth").touch()
        else:
            write_test(folder, {"accuracy/top1": 15.0}, name="20261122_000000")

    monkeypatch.setattr(running, "_execute", execute)
    monkeypatch.setattr(environment, "commit", lambda: "abc")
    (folder / "epoch_2.pth").unlink()
    shutil.rmtree(folder / TEST)
    scalars = folder / TRAINING / "vis_data" / "scalars.json"
    scalars.write_text("".join(scalars.read_text().splitlines(keepends=True)[:2]))
    assert run("--epochs", "2", LR) == 0
    assert started == [["--resume"], ["--eval-only", "--resume"]]
    after = record.read(folder / "record.json")
    assert after["commit"] == "e04ae0c64242, abc" and after["figures"] == {"top-1": 15.0}
    assert (after["run"], after["planned"], after["seed"]) == (2, 2, 1)
    assert "optim_wrapper" in after["label"] and "shortened: 2 of 165" in after["label"]


@pytest.mark.parametrize("words", [["--epochs", "3", LR], ["--epochs", "2"]])
def test_other_settings_are_refused(folder, words, capsys):
    assert run(*words) == 2
    assert "was begun with other settings" in capsys.readouterr().err


def test_what_a_config_file_said_is_no_other_setting(tmp_path):
    """Batch sizes and ablations had configs of their own."""
    cell = registry.find_cell("ilm-4 GN, batch 32")
    (one,) = running.plan([cell], running.Options(work_dir=tmp_path))
    now = running._current_launch(one)
    own, rest = now.overrides[:2], now.overrides[2:]
    assert own == list(cell.overrides) and rest
    assert running._changed_settings(one, replace(now, overrides=rest), now) == []
    (other,) = running._changed_settings(one, replace(now, overrides=rest[1:]), now)
    assert other == f"work_dir='WORK_DIR/{cell.folder}/seed0'"


def test_the_report_shows_it(folder):
    assert main(["report", "--work-dir", "moved", "--output", "reports"]) == 0
    (line,) = (r for r in Path("reports/en.md").read_text().splitlines() if "EN, ours" in r)
    assert "shortened: 2 of 165 epochs, 128 of 50000 images" in line and "e04ae0c64242" in line


def test_a_gpu_is_told_by_the_frameworks_log(folder):
    log = folder / "output.log"
    for text, device in (
        ("    CUDA available: True\n    GPU 0: NVIDIA H200\n", "NVIDIA H200"),
        ("    GPU 0,1: NVIDIA H200\n", "2 x NVIDIA H200"),
        ("GPU 0                NVIDIA H200 (arch=9.0)\n", "NVIDIA H200"),
        ("    CUDA available: False\n    GPU number: 1\n", "CPU, AMD EPYC"),
    ):
        log.write_text(text)
        assert launch.read(folder).device == device
