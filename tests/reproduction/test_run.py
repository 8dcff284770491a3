"""Runs of cells: what is run, in miniature where it is, and what is told when it cannot be."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

import torch
from mmengine.registry import init_default_scope
from torch import nn

import fresh
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.openmmlab import checkpoints, train
from ilm_plugins.reproduction import launch, registry
from ilm_plugins.reproduction import run as running
from ilm_plugins.reproduction.main import main
from recipes import ROOT
from reproduction.folders import write_launch, write_run, write_test, write_test_alone

CELL = registry.named("en-5 ResNet20/EN")
CELLS = [cell for table in registry.tables().values() for cell in table.cells.values()]


def run(work_dir, *words):
    return main(["run", *words, "--num-gpus", "0", "--work-dir", str(work_dir)])


def planned(*cells, **options):
    chosen = [registry.named(cell) for cell in cells]
    return running.plan(chosen, running.Options(**options))


def overrides(cell, **options):
    (found,) = planned(cell, **options)
    return running._overrides(found)


def note(one):
    """Write a run's launch.json."""
    one.folder.mkdir(parents=True, exist_ok=True)
    with running.CONFIG_LOCK:
        running._write_launch(one, running._overrides(one))


def test_cells_that_share_a_config_are_run_once_a_seed():
    cells = ("ilm-1 GN", "assoc-1 GN", "ilm-7 GN")
    found = planned(*cells, seeds=(0, 1))
    assert [one.name for one in found] == ["ilm-1 GN, seed 0", "ilm-1 GN, seed 1"]
    folder = planned("en-5 ResNet20/EN", seeds=(2,))[0].folder
    assert str(folder) == "output/reproduce/en-5/ResNet20-EN/seed2"


def test_a_run_has_its_seed_folder_data_and_length(tmp_path):
    (tmp_path / "train.npz").touch()
    words = overrides(CELL.id, seeds=(3,), length=12, data=str(tmp_path), work_dir=tmp_path)
    assert "randomness.seed=3" in words and "train_cfg.max_epochs=12" in words
    assert "param_scheduler.1.milestones=[6, 9]" in words
    assert "train_dataloader.dataset.type=PackedImages" in words
    assert f"work_dir='{tmp_path / 'en-5/ResNet20-EN/seed3'}'" in words
    words = overrides(CELL.id, length=165)
    assert not any("max_epochs" in word for word in words)
    (one,) = planned(CELL.id, length=12, data="d", num_gpus=1, overrides=("a.b=1",))
    assert one.command == (
        "python tools/reproduce.py run en-5 ResNet20/EN --seeds 0 --epochs 12 --num-gpus 1 "
        "--data d a.b=1"
    )


def test_overrides_stand_anywhere_and_become_pairs_for_detectron2(monkeypatch):
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    seen = []
    monkeypatch.setattr(running, "perform", lambda plan, options: seen.append(plan[0]) or 0)
    assert main(["run", "ilm-5", "GN, batch 2", "--seeds", "0", "SOLVER.BASE_LR=0.1"]) == 0
    words = running._overrides(seen[0])
    assert words[-2:] == ["SOLVER.BASE_LR", "0.1"]
    assert words[words.index("SEED") + 1] == "0"


@pytest.mark.parametrize(
    "words, answer",
    [
        (("en-2", "ResNet50/SENet"), "en-2 ResNet50/SENet: not implemented here"),
        (("en-6", "ADE20K/EN", "--epochs", "2"), "counts iterations; give --iterations N"),
        (("en-4", "ImageNet -> WebVision/EN"), "needs the checkpoint of en-2 ResNet50/EN, seed 0"),
        (("en-6", "ADE20K/SN"), "needs the checkpoint of en-6 backbone/SN, seed 0, which is at 0"),
        (("en-5", "ResNet20/EN", "--data", "nowhere"), "--data nowhere: no such folder"),
        (("en-9", "nothing"), "no cell of en-9 'nothing'; near ones are"),
        (("en-2", "ResNet50/EN"), "is for batches of 128 images; 1 x 32 are 32; give --num-gpus 4"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(tmp_path, capfd, words, answer):
    assert run(tmp_path, *words) == 2
    error = capfd.readouterr().err
    assert answer in error and error.count("\n") == 1


@pytest.fixture
def fresh_processes(monkeypatch):
    """Runs are of processes that need not import torch."""
    of_fresh = SimpleNamespace(**{**vars(subprocess), "Popen": fresh.Process})
    monkeypatch.setattr(running, "subprocess", of_fresh)


def test_images_that_are_not_there_are_told_with_their_folder(fresh_processes, tmp_path, capfd):
    assert run(tmp_path, "ilm-3", "BN", "train_dataloader.dataset.data_root=nowhere") == 2
    error = capfd.readouterr().err
    assert "ilm-3 BN, seed 0: error: data set of train_dataloader.dataset is not there" in error
    assert str(ROOT / "nowhere") in error or ("/nowhere" in error and error.count("\n") == 1)


def test_a_work_dir_that_cannot_be_made_is_told(capfd):
    if not Path("/proc/self").exists():
        pytest.skip("no /proc, in which not even root can make a folder")
    assert run("/proc/x", "en-5", "ResNet20/EN") == 2
    error = capfd.readouterr().err
    assert "output folder '/proc/x' cannot be written" in error and "set --work-dir" in error
    assert "--resume" not in error


def test_a_complete_run_is_recorded_and_not_run_again(tmp_path, capsys):
    (one,) = planned(CELL.id, work_dir=tmp_path, length=9)
    write_run(one.folder, CELL.config, 9)
    write_test(one.folder, {"accuracy/top1": 88.0})
    note(one)
    assert run(tmp_path, "en-5", "ResNet20/EN", "--epochs", "9") == 0
    assert "seed 0: top-1 88 (shortened: 9 of 165 epochs)" in capsys.readouterr().out
    assert json.loads((one.folder / "record.json").read_text())["figures"] == {"top-1": 88.0}
    assert not (one.folder / "output.log").exists()


def test_a_run_is_not_gone_on_with_under_other_settings(tmp_path, capsys):
    (one,) = planned(CELL.id, work_dir=tmp_path, length=9)
    write_run(one.folder, CELL.config, 3)
    note(one)
    assert run(tmp_path, "en-5", "ResNet20/EN", "--epochs", "12") == 2
    error = capsys.readouterr().err
    assert "was begun with other settings" in error and "train_cfg.max_epochs=9" in error


def test_a_whole_run_is_no_answer_to_other_settings(tmp_path, capsys):
    (one,) = planned(CELL.id, work_dir=tmp_path, num_gpus=0)
    write_run(one.folder, CELL.config, 165)
    write_test(one.folder, {"accuracy/top1": 92.0})
    note(one)
    assert run(tmp_path, "en-5", "ResNet20/EN") == 0
    before = (one.folder / "record.json").read_bytes()
    for word in ("optim_wrapper.optimizer.lr=0.5", "--epochs=9"):
        assert run(tmp_path, "en-5", "ResNet20/EN", word) == 2
        assert "was begun with other settings" in capsys.readouterr().err
    assert (one.folder / "record.json").read_bytes() == before


def test_where_a_run_was_made_stays_in_its_record(tmp_path, monkeypatch):
    (one,) = planned(CELL.id, work_dir=tmp_path, num_gpus=0)
    one.folder.mkdir(parents=True)
    for commit, epochs in (("abc", 60), ("def", 165)):  # it was stopped in between
        monkeypatch.setattr(launch, "commit", lambda commit=commit: commit)
        running._write_launch(one, running._overrides(one))
        write_run(one.folder, CELL.config, epochs, start=epochs // 2, name=commit)
    write_test(one.folder, {"accuracy/top1": 92.0}, name="ghi")
    monkeypatch.setattr(launch, "commit", lambda: "ghi")
    assert run(tmp_path, "en-5", "ResNet20/EN") == 0
    assert json.loads((one.folder / "record.json").read_text())["commit"] == "abc, def"


def test_another_checkpoint_is_tested_anew(tmp_path):
    trained, one = planned("en-2 ResNet50/EN", "en-4 ImageNet -> WebVision/EN", work_dir=tmp_path)
    write_run(trained.folder, trained.cell.config, 100)
    write_test(trained.folder, {"accuracy/top1": 76.0})
    write_launch(trained.folder)
    note(one)
    options = {"load_from": str(trained.folder / "epoch_2.pth")}
    write_test_alone(one.folder, one.cell.config, {"accuracy/top1": 5.0}, options)
    assert running._tests_to_do(one, running._overrides(one)) == [()]
    options = {"load_from": str(trained.folder / "epoch_100.pth")}
    metrics = {"accuracy/top1": 68.0}
    write_test_alone(one.folder, one.cell.config, metrics, options, name="20260103_000000")
    assert running._tests_to_do(one, running._overrides(one)) == []
    assert running._write_record(one)["figures"]["top-1"] == 68.0
    assert "from en-2 ResNet50/EN (batches of 32, not 128)" in running._write_record(one)["label"]


def test_a_test_under_other_settings_is_made_anew(tmp_path, monkeypatch, capsys):
    """A cell that only tests has no checkpoint of its own that would tell of a beginning."""
    cells = ("en-2 ResNet50/EN", "en-4 ImageNet -> WebVision/EN")
    trained = planned(*cells, work_dir=tmp_path)[0]
    write_run(trained.folder, trained.cell.config, 100)
    write_test(trained.folder, {"accuracy/top1": 76.0})
    write_launch(trained.folder, processes=4)
    options, tests = {"load_from": str(trained.folder / "epoch_100.pth")}, []

    def execute(run, words, overrides, *_):
        tests.append(overrides[-1])
        name, metrics = f"2027_{len(tests)}", {"accuracy/top1": 60.0 + len(tests)}
        few = {"test_dataloader.dataset.indices": 10} if "indices" in overrides[-1] else {}
        write_test_alone(run.folder, run.cell.config, metrics, {**options, **few}, name=name)

    monkeypatch.setattr(running, "_execute", execute)
    words, few = ("en-4", "ImageNet -> WebVision/EN"), "test_dataloader.dataset.indices=10"
    for number, more, figure in ((1, [], "61"), (1, [], "61"), (2, [few], "62"), (3, [], "63")):
        assert run(tmp_path, *words, *more) == 0
        assert len(tests) == number
        told = capsys.readouterr().out
        assert f"top-1 {figure} (" in told and ("indices=10" in told) == bool(more)


def test_a_backbone_of_which_only_a_checkpoint_is_there_is_told(tmp_path):
    (one,) = planned("en-6 ADE20K/EN", work_dir=tmp_path, num_gpus=8)
    one.before.folder.mkdir(parents=True)
    for name, text in (("epoch_100.pth", ""), ("last_checkpoint", "epoch_100.pth")):
        (one.before.folder / name).write_text(text)
    write_run(one.folder, one.cell.config, 1)
    note(one)
    assert "from en-6 backbone/EN (no record)" in running._write_record(one)["label"]


def test_what_fails_ends_no_other_run(tmp_path, monkeypatch, capsys):
    compute = running._compute

    def failing(cell, options):
        if cell.name == "BN":
            raise OSError(errno.ENOSPC, "No space left on device")
        return compute(cell, options)

    monkeypatch.setattr(running, "_compute", failing)
    assert run(tmp_path, "en-1") == 1
    told = capsys.readouterr()
    assert "en-1 BN: error: a file of the run: No space left" in told.err
    assert told.err.count("\n") == 1 and "en-1 EN: parameters of a layer 2401" in told.out


def test_those_that_a_dead_process_started_end_too(tmp_path):
    command = f"sleep 60 & echo $! > {tmp_path / 'pid'}"
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    assert process.wait(20) == 0
    status = Path("/proc", (tmp_path / "pid").read_text().strip(), "status")
    assert status.is_file()
    running._terminate(process)
    deadline = time.monotonic() + 20
    # Nobody may be there to reap it.
    while status.is_file() and "Z (zombie)" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_cut_short_is_told_in_one_line(tmp_path, capsys):
    (one,) = planned(CELL.id, work_dir=tmp_path)
    write_run(one.folder, CELL.config, 3)
    for name in (launch.OLD_FILE, launch.FILE):
        (one.folder / name).write_text('{"command": "python')
        assert run(tmp_path, "en-5", "ResNet20/EN") == 2
        error = capsys.readouterr().err
        assert f"{name} is cut short" in error and error.count("\n") == 1


def test_a_run_whose_settings_are_unknown_is_not_gone_on_with(tmp_path, capsys):
    (one,) = planned(CELL.id, work_dir=tmp_path)
    write_run(one.folder, CELL.config, 3)
    assert run(tmp_path, "en-5", "ResNet20/EN") == 2
    assert "settings are unknown: no launch.json; give another" in capsys.readouterr().err


def test_iterations_are_not_those_of_the_backbone():
    (one,) = planned("en-6 ADE20K/EN", length=500, unit="iterations")
    assert one.length == (500, "iterations") and one.before.length == (100, "epochs")
    setting = "model.backbone.init_cfg.checkpoint=mine.pth"
    (one,) = planned("en-6 ADE20K/EN", overrides=(setting,), num_gpus=8)
    assert one.before is None and running._overrides(one)[-1] == setting


def built(config, *overrides):
    """A config's model with half as many channels, initialized."""
    words = ["--config-file", str(ROOT / config), "--num-gpus", "0", *overrides]
    narrow = ["model.backbone.base_channels=32", "model.backbone.stem_channels=32"]
    cfg = train.load_config(train_net.parser().parse_args([*words, *narrow]))
    init_default_scope(cfg.default_scope)
    checkpoints.guard()
    model = train.model_of(cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    "cell",
    [
        cell.id if "SyncBN" in cell.id else pytest.param(cell.id, marks=pytest.mark.wide)
        for cell in CELLS
        if cell.starts_from
    ],
    ids=lambda name: name.split()[1],
)
def test_what_starts_from_another_run_has_its_weights(cell, tmp_path):
    (one,) = planned(cell, work_dir=tmp_path, num_gpus=8)
    backbone = built(one.before.cell.config)
    for tensor in backbone.parameters():
        nn.init.normal_(tensor)
    one.before.folder.mkdir(parents=True)
    file = one.before.folder / "epoch_100.pth"
    torch.save({"meta": {}, "state_dict": backbone.state_dict()}, file)
    (one.before.folder / "last_checkpoint").write_text(str(file))
    found = built(one.cell.config, *running._overrides(one)).backbone.state_dict()
    expected = backbone.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    write_run(one.folder, one.cell.config, 1)
    note(one)
    assert running._write_record(one)["changes"] == {}


def test_a_backbone_is_whole_without_the_multi_scale_test_of_its_table(tmp_path):
    (one,) = planned("en-6 backbone/EN", work_dir=tmp_path, num_gpus=8)
    write_run(one.folder, one.cell.config, 100)
    note(one)
    assert running._tests_to_do(one, running._overrides(one)) == [()]
    assert running._write_record(one)["label"] == "no figure yet"
    write_test(one.folder, {"accuracy/top1": 76.0})
    assert running._tests_to_do(one, running._overrides(one)) == []
    assert running._write_record(one)["label"] == "full recipe"


def test_a_whole_run_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    (one,) = planned("en-6 backbone/EN", work_dir=tmp_path, num_gpus=8)
    note(one)
    monkeypatch.chdir(tmp_path)
    write_run(one.folder, one.cell.config, 100)
    write_test(one.folder, {"accuracy/top1": 76.0})
    words = ("en-6", "backbone/EN", "--num-gpus", "8", "--work-dir", str(tmp_path))
    assert main(["run", *words]) == 0
    assert "en-6 backbone/EN, seed 0: no figure (full recipe)" in capsys.readouterr().out


def test_how_a_process_was_ended_is_told(tmp_path, capsys, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho half a line\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(program))
    assert run(tmp_path, "en-5", "ResNet20/EN") == 1
    error = capsys.readouterr().err
    assert "seed 0: error: ended by SIGKILL; a process out of memory ends so, too" in error


@pytest.mark.parametrize("option", [(), ("--unsafe",)])
def test_files_of_runs_are_trusted_where_the_user_says_so(tmp_path, monkeypatch, option):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $@ > {tmp_path / 'words'}\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(program))
    assert run(tmp_path, "en-5", "ResNet20/EN", *option) == 2
    assert ("--unsafe" in (tmp_path / "words").read_text().split()) == bool(option)
    (one,) = planned(CELL.id, unsafe=bool(option))
    assert ("--unsafe" in one.command) == bool(option)


def test_time_that_is_up_begins_nothing(tmp_path, capsys):
    words = ("en-5", "ResNet20", "--minutes", "1e-9", "--jobs", "2")
    assert run(tmp_path, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("at 0 of 165 epochs; run the same" in line for line in lines)


@pytest.mark.wide
def test_a_miniature_is_stopped_gone_on_with_and_reported_as_one(fresh_processes, tmp_path, capfd):
    words = ("en-5", "ResNet20/EN", "--miniature")
    assert run(tmp_path, *words, "--minutes", "0.02") == 0
    # Up to which epoch it comes depends on the machine.
    told = r"en-5 ResNet20/EN, seed 0: stopped at [012] of 2 epochs; run the same command to go on"
    assert re.match(told, capfd.readouterr().out)
    assert run(tmp_path, *words) == 0
    assert "(miniature, shortened: 2 of 165 epochs)" in capfd.readouterr().out
    folder = tmp_path / "miniature" / CELL.folder / "seed0"
    found = json.loads((folder / "record.json").read_text())
    assert 0 <= found["figures"]["top-1"] <= 100 and len(found["curve"]) == 2
    assert all("accuracy_top-1" in row for row in found["curve"])
    assert found["seed"] == 0 and found["device"].startswith("CPU") and found["seconds"] > 0
    written = (folder / "output.log").stat().st_size
    assert run(tmp_path, *words) == 0
    assert (folder / "output.log").stat().st_size == written
    out = tmp_path / "reports"
    argv = ["report", "--work-dir", str(tmp_path), "--records", str(out / "records")]
    assert main(argv) == 0
    lines = (out / "en.md").read_text().splitlines()
    (own,) = (line for line in lines if "ResNet20/EN, ours" in line)
    assert "miniature, shortened" in own and "92.41" not in own
    assert "| ResNet20/EN | not run | 92.41 |" in "\n".join(lines)


@pytest.mark.parametrize(
    "cell",
    [
        "ilm-6 ILM+IN / IN",
        *(
            pytest.param(cell, marks=pytest.mark.long)
            for cell in (
                "ilm-5 ILM+GN, batch 2",
                "ilm-5 ILM+GN, batch 2, mmdet",
                "en-3 Inception v2/EN",
                "en-6 ADE20K/EN",
                "ilm-2 ILM+GN",
            )
        ),
    ],
)
@pytest.mark.wide
def test_each_frameworks_miniature_gives_the_figures_of_its_table(cell, tmp_path):
    table, name = cell.split(" ", 1)
    one = registry.named(cell)
    if table == "ilm-6":
        pytest.importorskip("torchmetrics", reason="needs torchmetrics, of ilm_plugins[pix2pix]")
    if one.config.endswith(".yaml"):
        pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    assert run(tmp_path, table, name, "--miniature") == 0
    file = tmp_path / "miniature" / one.folder / "seed0" / "record.json"
    found = json.loads(file.read_text())
    measures = set(registry.tables()[table].measures)
    assert found["figures"].keys() == measures - {"LPIPS"}
    assert found["label"].startswith("miniature, shortened: 2 of ") and found["curve"]


@pytest.mark.long
def test_a_checkpoint_of_one_data_set_is_tested_on_another(tmp_path):
    assert run(tmp_path, "en-2", "ResNet50/BN", "--miniature") == 0
    assert run(tmp_path, "en-4", "ImageNet -> WebVision/BN", "--miniature") == 0
    cell = registry.named("en-4 ImageNet -> WebVision/BN")
    file = tmp_path / "miniature" / cell.folder / "seed0" / "record.json"
    assert json.loads(file.read_text())["figures"].keys() == {"top-1", "top-5"}


@pytest.mark.long
def test_a_signal_ends_the_runs_with_their_command(tmp_path):
    tool = [sys.executable, str(ROOT / "tools" / "reproduce.py"), "run", "en-5", "ResNet20"]
    options = ["--miniature", "--jobs", "2", "--num-gpus", "0", "--work-dir", str(tmp_path)]
    process = subprocess.Popen([*tool, *options], stderr=subprocess.PIPE, text=True)
    logs = []
    while len(logs) < 2 and process.poll() is None:
        time.sleep(0.2)
        logs = sorted(tmp_path.glob("miniature/en-5/*/seed0/output.log"))
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.splitlines()[-1] == "reproduce.py: error: stopped by SIGTERM"
    folders = [str(log.parent) for log in logs]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_text()
        except OSError:
            continue
        assert not any(folder in words for folder in folders)
