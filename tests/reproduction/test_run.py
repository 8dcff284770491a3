"""Runs of cells: what is run, in miniature where it is, and what is told when it cannot be."""

import asyncio
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
from faults import alive, wait_until_gone
from ilm_plugins.cli import environment, train_net
from ilm_plugins.frameworks.openmmlab import checkpoints, train
from ilm_plugins.reproduction import record, registry, run_settings
from ilm_plugins.reproduction import run as running
from ilm_plugins.reproduction.main import main
from recipes import ROOT
from reproduction.folders import write_run, write_test, write_test_alone

CELL = registry.find_cell("en-5 ResNet20/EN")
WEBVISION = "en-4 ImageNet -> WebVision/EN"


def run(work_dir, *words):
    return main(["run", "--num-gpus", "0", "--work-dir", str(work_dir), *words])


def planned(*cells, **options):
    chosen = [registry.find_cell(cell) for cell in cells]
    return running.plan(chosen, running.Options(**options))


def write_settings(one):
    """Write a run's launch.json."""
    one.folder.mkdir(parents=True, exist_ok=True)
    running._write_settings(one, running._current_settings(one))


def trained(cell, done, accuracy=None, **options):
    """A run whose folder is as after ``done`` epochs, and, with an accuracy, after its test."""
    (one,) = planned(cell, **options)
    write_run(one.folder, one.cell.config, done)
    if accuracy is not None:
        write_test(one.folder, {"accuracy/top1": accuracy})
    write_settings(one)
    return one


def read_record(one):
    return json.loads((one.folder / "record.json").read_text())


def missing_tests(one):
    return running._tests_to_do(one, running._current_settings(one))


def test_cells_that_share_a_config_are_run_once_a_seed():
    cells = ("ilm-1 GN", "assoc-1 GN", "ilm-7 GN")
    found = planned(*cells, seeds=(0, 1))
    assert [one.name for one in found] == ["ilm-1 GN, seed 0", "ilm-1 GN, seed 1"]
    folder = planned("en-5 ResNet20/EN", seeds=(2,))[0].folder
    assert str(folder) == "output/reproduce/en-5/ResNet20-EN/seed2"


def test_a_run_has_its_seed_folder_data_and_length(tmp_path):
    (tmp_path / "train.npz").touch()
    (one,) = planned(CELL.id, seeds=(3,), epochs=12, data=str(tmp_path), work_dir=tmp_path)
    words = running._overrides(one)
    assert "randomness.seed=3" in words and "train_cfg.max_epochs=12" in words
    assert "param_scheduler.1.milestones=[6, 9]" in words
    assert "train_dataloader.dataset.type=PackedImages" in words
    assert f"work_dir='{tmp_path / 'en-5/ResNet20-EN/seed3'}'" in words
    (one,) = planned(CELL.id, epochs=165)
    assert not any("max_epochs" in word for word in running._overrides(one))
    (one,) = planned(CELL.id, epochs=12, data="d", num_gpus=1, overrides=("a.b=1",))
    assert one.command == (
        "python -m ilm_plugins reproduce run en-5 ResNet20/EN --seeds 0 --epochs 12 --num-gpus 1 "
        "--data d a.b=1"
    )


def test_overrides_stand_anywhere_and_become_pairs_for_detectron2(monkeypatch):
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    seen = []
    monkeypatch.setattr(running, "run_all", lambda plan, options: seen.append(plan[0]) or 0)
    assert main(["run", "ilm-5", "GN, batch 2", "--seeds", "0", "SOLVER.BASE_LR=0.1"]) == 0
    words = running._overrides(seen[0])
    assert words[-2:] == ["SOLVER.BASE_LR", "0.1"]
    assert words[words.index("SEED") + 1] == "0"


@pytest.mark.parametrize(
    "words, answer",
    [
        (("en-6", "ADE20K/EN", "--epochs", "2"), "counts iterations; give --iterations N"),
        (("en-4", "ImageNet -> WebVision/EN"), "needs the checkpoint of en-2 ResNet50/EN, seed 0"),
        (("en-6", "ADE20K/SN"), "needs the checkpoint of en-6 backbone/SN, seed 0, which is at 0"),
        (("en-5", "ResNet20/EN", "--data", "nowhere"), "--data nowhere: no such folder"),
        (
            ("en-2", "ResNet50/EN"),
            "is for batches of 128 images; 1 x 32 are 32; give --num-gpus 4, or train_dataloader."
            "batch_size=128 (the result is labelled with it), or auto_scale_lr.enable=True",
        ),
        (
            ("en-2", "ResNet50/EN", "--num-gpus", "3"),
            "3 x 32 are 96; give --num-gpus 4, or auto_scale_lr.enable=True",
        ),
        (("en-5", "--work-dir", "/proc/x"), "output folder '/proc/x' cannot be written"),
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
    assert "/nowhere" in error and error.count("\n") == 1


def test_a_complete_run_is_recorded_and_not_run_again(tmp_path, capsys):
    one = trained(CELL.id, 9, accuracy=88.0, epochs=9, work_dir=tmp_path)
    assert run(tmp_path, "en-5", "ResNet20/EN", "--epochs", "9") == 0
    assert "seed 0: top-1 88 (shortened: 9 of 165 epochs)" in capsys.readouterr().out
    assert read_record(one)["figures"] == {"top-1": 88.0}
    assert not (one.folder / "output.log").exists()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    one, started = trained(CELL.id, 60, work_dir=tmp_path), []

    async def execute(run, settings, words, _):
        started.append(words)
        if words == ["--resume"]:
            write_run(run.folder, CELL.config, 165, start=60, name="20260101_100000")
        else:
            write_test(run.folder, {"accuracy/top1": 92.0})

    monkeypatch.setattr(running, "_execute", execute)
    assert run(tmp_path, "en-5", "ResNet20/EN") == 0
    assert started == [["--resume"], ["--eval-only", "--resume"]]
    found = read_record(one)
    assert (found["run"], found["label"]) == (165, "full recipe")
    assert found["figures"] == {"top-1": 92.0}


def test_tests_of_one_row_write_their_predictions_apart(tmp_path, monkeypatch):
    trained("en-6 backbone/EN", 100, work_dir=tmp_path)
    cells = "en-6 Cityscapes/EN", "en-6 Cityscapes test server/EN"
    parent, one = planned(*cells, work_dir=tmp_path)
    write_run(parent.folder, parent.cell.config, 1)
    checkpoint = parent.folder / f"iter_{parent.length[0]}.pth"
    (parent.folder / "epoch_1.pth").rename(checkpoint)
    (parent.folder / "last_checkpoint").write_text(str(checkpoint))
    write_settings(parent)
    started = []

    async def execute(run, settings, words, _):
        name, options = f"2026010{len(started)}_000000", {"load_from": str(checkpoint)}
        write_test_alone(run.folder, run.cell.config, {}, options, name)
        started.append(words)

    monkeypatch.setattr(running, "_execute", execute)
    assert run(tmp_path, "en-6", "Cityscapes test server/EN") == 0
    key = f"test_evaluator.0.output_dir='{one.folder}/predictions"
    assert started == [["--eval-only", f"{key}'"], ["--eval-only", "--tta", f"{key}--tta'"]]


def test_files_of_earlier_runs_can_be_read(tmp_path):
    """Runs are resumed and reported with later versions than they were started with."""
    (one,) = planned(CELL.id, work_dir=tmp_path)
    write_settings(one)
    assert list(json.loads((one.folder / "launch.json").read_text())) == [
        *("command", "overrides", "given", "length", "seed", "processes", "miniature"),
        *("commit", "versions", "device"),
    ]
    file = one.folder / "launch.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of another version": 1}))
    assert run_settings.read(one.folder).seed == 0


@pytest.mark.parametrize("cell", ["ilm-4 GN, batch 32", "en-5 ResNet20/EN"])
def test_a_run_goes_on_with_its_data_and_its_folder_elsewhere(cell, tmp_path):
    found = []
    for data in ("a", "b"):
        (tmp_path / data).mkdir()
        workers = f"train_dataloader.num_workers={len(found)}"
        options = {"data": str(tmp_path / data), "overrides": (workers, "channels_last=True")}
        (one,) = planned(cell, work_dir=tmp_path / f"runs of {data}", **options)
        found.append(running._current_settings(one))
    assert found[0].overrides != found[1].overrides
    assert running._changed_settings(one, *found) == []


def test_a_test_under_other_settings_of_its_own_is_needed_again(tmp_path):
    one = trained(CELL.id, 165, accuracy=92.0, work_dir=tmp_path)
    assert missing_tests(one) == []
    for word, needed in (("test_evaluator.topk=(1,5)", [()]), ("log_level=DEBUG", [])):
        (other,) = planned(CELL.id, work_dir=tmp_path, overrides=(word,))
        assert missing_tests(other) == needed


def test_a_row_that_is_only_tested_is_tested_again_on_other_images(resnet, tmp_path):
    for data in ("a", "b"):
        (tmp_path / data).mkdir()
    first, second = (
        planned(WEBVISION, work_dir=tmp_path, data=str(tmp_path / data))[0] for data in ("a", "b")
    )
    options = {"load_from": str(resnet.folder / "epoch_100.pth")}
    write_test_alone(first.folder, first.cell.config, {"accuracy/top1": 68.0}, options)
    write_settings(first)
    assert missing_tests(first) == [] and missing_tests(second) == [()]


@pytest.mark.parametrize(
    "options, answer",
    [
        ({"epochs": 9}, "--epochs was 165, is 9"),
        ({"overrides": ("model.head.x=1",)}, "model.head.x was not given, is 1"),
        ({"augment_batches": True}, "--augment-batches was False, is True"),
        ({"num_gpus": 2}, "batch size was 128, is 256"),
        ({"data": "packed"}, "packed images was False, is True"),
    ],
)
def test_what_changes_an_experiment_is_told(options, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train.npz").touch()
    before, after = (planned(CELL.id, **more)[0] for more in ({}, options))
    settings = [running._current_settings(one) for one in (before, after)]
    assert running._changed_settings(after, *settings) == [answer]


@pytest.mark.parametrize(
    "epochs, word, answer",
    [
        (165, "--epochs=9", "--epochs was 165, is 9"),
        (3, "optim_wrapper.optimizer.lr=0.5", "optim_wrapper.optimizer.lr was not given, is 0.5"),
    ],
)
def test_a_run_is_no_answer_to_other_settings(tmp_path, capsys, epochs, word, answer):
    """Neither where it is whole nor where it could continue."""
    one = trained(CELL.id, epochs, accuracy=92.0, work_dir=tmp_path)
    assert run(tmp_path, "en-5", "ResNet20/EN", word) == 2
    error = capsys.readouterr().err
    assert "was begun with other settings" in error and answer in error
    assert not (one.folder / "record.json").exists()


def test_where_a_run_was_made_stays_in_its_record(tmp_path, monkeypatch):
    for commit, epochs in (("abc", 60), ("def", 165)):  # it was stopped in between
        monkeypatch.setattr(environment, "commit", lambda commit=commit: commit)
        device = f"CPU, of {commit}"
        monkeypatch.setattr(run_settings, "device", lambda _, device=device: device)
        (one,) = planned(CELL.id, work_dir=tmp_path)
        write_settings(one)
        write_run(one.folder, CELL.config, epochs, start=epochs // 2, name=commit)
    write_test(one.folder, {"accuracy/top1": 92.0}, name="ghi")
    monkeypatch.setattr(environment, "commit", lambda: "ghi")
    assert run(tmp_path, "en-5", "ResNet20/EN") == 0
    found = read_record(one)
    assert (found["commit"], found["device"]) == ("abc, def", "CPU, of abc, then CPU, of def")


@pytest.fixture
def resnet(tmp_path):
    """A whole run of ResNet-50 on ImageNet, on a quarter of the recipe's batch."""
    return trained("en-2 ResNet50/EN", 100, accuracy=76.0, work_dir=tmp_path)


def test_another_checkpoint_is_tested_anew(resnet, tmp_path):
    (one,) = planned(WEBVISION, work_dir=tmp_path)
    write_settings(one)
    for epoch, top1, needed in ((2, 5.0, [()]), (100, 68.0, [])):
        options = {"load_from": str(resnet.folder / f"epoch_{epoch}.pth")}
        name = f"20260103_{epoch:06}"
        write_test_alone(one.folder, one.cell.config, {"accuracy/top1": top1}, options, name=name)
        assert missing_tests(one) == needed
    found = running._write_record(one)
    assert found["figures"]["top-1"] == 68.0
    assert found["label"] == "from en-2 ResNet50/EN (batches of 32, not 128)"


def test_a_test_under_other_settings_is_made_anew(resnet, tmp_path, monkeypatch, capsys):
    """A cell that only tests has no checkpoint of its own that would tell of a beginning."""
    options, tests = {"load_from": str(resnet.folder / "epoch_100.pth")}, []

    async def execute(run, settings, *_):
        tests.append(settings.given)
        name, metrics = f"2027_{len(tests)}", {"accuracy/top1": 60.0 + len(tests)}
        few = {"test_dataloader.dataset.indices": 10} if settings.given else {}
        write_test_alone(run.folder, run.cell.config, metrics, {**options, **few}, name=name)

    monkeypatch.setattr(running, "_execute", execute)
    few = "test_dataloader.dataset.indices=10"
    for number, more, figure in ((1, [], "61"), (1, [], "61"), (2, [few], "62"), (3, [], "63")):
        assert run(tmp_path, *WEBVISION.split(" ", 1), *more) == 0
        assert len(tests) == number
        printed = capsys.readouterr().out
        assert f"top-1 {figure} (" in printed and ("indices=10" in printed) == bool(more)


def test_a_run_of_which_only_a_checkpoint_is_there_is_told(tmp_path):
    (one,) = planned("en-6 ADE20K/EN", work_dir=tmp_path)
    one.parent_run.folder.mkdir(parents=True)
    for file, text in (("epoch_100.pth", ""), ("last_checkpoint", "epoch_100.pth")):
        (one.parent_run.folder / file).write_text(text)
    write_run(one.folder, one.cell.config, 1)
    write_settings(one)
    assert f"from {one.parent_run.cell.id} (no record)" in running._write_record(one)["label"]


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


def test_a_bug_in_one_run_is_told_with_its_name_as_in_all_others(tmp_path, monkeypatch, capsys):
    def failing(run, settings):
        raise ZeroDivisionError(run.cell.name)

    monkeypatch.setattr(running, "_check_batch", failing)
    assert run(tmp_path, "en-5", "ResNet20", "--traceback") == 2
    error = capsys.readouterr().err
    for name in ("BN", "SN", "EN"):
        line = f"en-5 ResNet20/{name}, seed 0: error: unexpected ZeroDivisionError: ResNet20/{name}"
        assert line in error
    assert error.count("Traceback") == 3


def test_runs_wait_for_those_they_start_from(tmp_path, monkeypatch):
    """The segmenters, which come first here, start from the backbone."""
    begun, ended = [], []

    async def work(run, deadline):
        begun.append((run.cell.name, list(ended)))
        await asyncio.sleep(0.01)
        ended.append(run.cell.name)
        return {"figures": {}, "label": "", "table": "en-6"}

    monkeypatch.setattr(running, "_train_and_test", work)
    jobs = planned("en-6 ADE20K/EN", "en-6 Cityscapes/EN", "en-6 backbone/EN", "en-6 backbone/SN")
    assert running.run_all(jobs, running.Options(jobs=4, work_dir=tmp_path)) == 0
    assert dict(begun)["ADE20K/EN"] == dict(begun)["Cityscapes/EN"] != []
    assert "backbone/EN" in dict(begun)["ADE20K/EN"] and dict(begun)["backbone/SN"] == []


def test_those_that_a_dead_process_started_end_too(tmp_path):
    command = f"sleep 60 & echo $! > {tmp_path / 'pid'}"
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    assert process.wait(20) == 0
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    asyncio.run(running._terminate(process))
    wait_until_gone([pid], seconds=20)


@pytest.mark.parametrize(
    "file, answer",
    [
        (run_settings.FILE, "launch.json has no settings of a run"),
        ("none.json", "settings are unknown: no launch.json; give another --work-dir"),
    ],
)
def test_a_run_whose_settings_are_unknown_is_not_gone_on_with(tmp_path, capsys, file, answer):
    (one,) = planned(CELL.id, work_dir=tmp_path)
    write_run(one.folder, CELL.config, 3)
    (one.folder / file).write_text('{"command": "python')
    assert run(tmp_path, "en-5", "ResNet20/EN") == 2
    error = capsys.readouterr().err
    assert answer in error and error.count("\n") == 1


def test_iterations_are_not_those_of_the_backbone():
    (one,) = planned("en-6 ADE20K/EN", iterations=500)
    assert one.length == (500, "iterations") and one.parent_run.length == (100, "epochs")
    setting = "model.backbone.init_cfg.checkpoint=mine.pth"
    (one,) = planned("en-6 ADE20K/EN", overrides=(setting,), num_gpus=8)
    assert one.parent_run is None and running._overrides(one)[-1] == setting


def built(config, *overrides):
    """A config's model with half as many channels, initialized."""
    words = ["--config-file", str(ROOT / config), "--num-gpus", "0", *overrides]
    narrow = ["model.backbone.base_channels=32", "model.backbone.stem_channels=32"]
    cfg = train.load_config(train_net.parser().parse_args([*words, *narrow]))
    init_default_scope(cfg.default_scope)
    checkpoints.use_safe_checkpoints()
    model = train.model_of(cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell.id, marks=[pytest.mark.wide] * (cell.id != "en-6 ADE20K/EN"))
        for cell in registry.cells()
        if cell.starts_from
    ],
    ids=lambda name: name.split()[1],
)
def test_what_starts_from_another_run_has_its_weights(cell, tmp_path):
    (one,) = planned(cell, work_dir=tmp_path, num_gpus=8)
    backbone = built(one.parent_run.cell.config)
    for tensor in backbone.parameters():
        nn.init.normal_(tensor)
    one.parent_run.folder.mkdir(parents=True)
    file = one.parent_run.folder / "epoch_100.pth"
    torch.save({"meta": {}, "state_dict": backbone.state_dict()}, file)
    (one.parent_run.folder / "last_checkpoint").write_text(str(file))
    found = built(one.cell.config, *running._overrides(one)).backbone.state_dict()
    expected = backbone.backbone.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    write_run(one.folder, one.cell.config, 1)
    write_settings(one)
    assert running._write_record(one)["changes"] == {}


def test_a_backbone_is_whole_without_the_multi_scale_test_of_its_table(tmp_path):
    one = trained("en-6 backbone/EN", 100, work_dir=tmp_path, num_gpus=8)
    assert missing_tests(one) == [()]
    assert running._write_record(one)["label"] == "no figure yet"
    write_test(one.folder, {"accuracy/top1": 76.0})
    assert missing_tests(one) == []
    assert running._write_record(one)["label"] == "full recipe"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that has runs execute a shell script in place of Python."""

    def replace(text):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        monkeypatch.setattr(running.sys, "executable", str(path))

    return replace


def test_how_a_process_was_ended_is_told(program, tmp_path, capsys):
    program("echo half a line\nkill -9 $$")
    assert run(tmp_path, "en-5", "ResNet20/EN") == 1
    error = capsys.readouterr().err
    assert "seed 0: error: ended by SIGKILL; the cause may be lack of memory" in error


def test_progress_is_printed_from_the_start(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "PROGRESS", 0.5)
    program("echo of step 1; echo; sleep 3; echo of the end; exit 2")
    assert run(tmp_path, "en-5", "ResNet20/EN", "--epochs", "9") == 2
    log = tmp_path / "en-5" / "ResNet20-EN" / "seed0" / "output.log"
    # What fails within PROGRESS seconds is not printed; each line is printed once.
    assert capsys.readouterr().out.splitlines() == [
        f"en-5 ResNet20/EN, seed 0: training 9 epochs; its log is {log}",
        "en-5 ResNet20/EN, seed 0: of step 1",
    ]


def test_a_run_is_announced_before_it_is_started(tmp_path, monkeypatch, capsys):
    printed = []

    def refuse(*args, **options):
        printed.append(capsys.readouterr().out)
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=refuse, STDOUT=None))
    assert run(tmp_path, "en-5", "ResNet20/EN", "--miniature") == 2
    (line,) = printed
    assert "seed 0: training 2 epochs on a few generated images; its log is" in line


@pytest.mark.parametrize("option", [(), ("--unsafe",)])
def test_files_of_runs_are_trusted_where_the_user_says_so(program, tmp_path, option):
    program(f"echo $@ > {tmp_path / 'words'}\nexit 2")
    assert run(tmp_path, "en-5", "ResNet20/EN", *option) == 2
    assert ("--unsafe" in (tmp_path / "words").read_text().split()) == bool(option)
    (one,) = planned(CELL.id, unsafe=bool(option))
    assert ("--unsafe" in one.command) == bool(option)


def test_time_that_is_up_begins_nothing(tmp_path, capsys):
    words = ("en-5", "ResNet20", "--minutes", "1e-9", "--jobs", "2")
    assert run(tmp_path, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("at 0 of 165 epochs; run the same" in line for line in lines)
    trained(CELL.id, 165, accuracy=92.0, work_dir=tmp_path)
    assert run(tmp_path, *words[:2], *words[2:4]) == 0
    assert "ResNet20/EN, seed 0: top-1 92 (full recipe)" in capsys.readouterr().out
    assert run(tmp_path, "en-4", "ImageNet -> WebVision/EN", *words[2:4]) == 0
    assert "seed 0: not begun; run the same command to continue" in capsys.readouterr().out


@pytest.mark.wide
def test_a_miniature_is_stopped_gone_on_with_and_reported_as_one(fresh_processes, tmp_path, capfd):
    words = ("en-5", "ResNet20/EN", "--miniature")
    assert run(tmp_path, *words, "--minutes", "0.02") == 0
    # Up to which epoch it comes depends on the machine.
    line = (
        r"en-5 ResNet20/EN, seed 0: stopped at [012] of 2 epochs; run the same command to continue"
    )
    assert re.match(line, capfd.readouterr().out.splitlines()[-1])
    assert run(tmp_path, *words) == 0
    assert "(miniature, shortened: 2 of 165 epochs)" in capfd.readouterr().out
    (one,) = planned(CELL.id, miniature=True, work_dir=tmp_path)
    found = read_record(one)
    assert 0 <= found["figures"]["top-1"] <= 100 and len(found["curve"]) == 2
    assert all("accuracy_top-1" in row for row in found["curve"])
    assert found["seed"] == 0 and found["device"].startswith("CPU") and found["seconds"] > 0
    written = (one.folder / "output.log").stat().st_size
    assert run(tmp_path, *words) == 0
    assert (one.folder / "output.log").stat().st_size == written
    assert main(["report", "--work-dir", str(tmp_path)]) == 0
    page = (tmp_path / "reports" / "en.md").read_text()
    (own,) = (line for line in page.splitlines() if "ResNet20/EN, ours" in line)
    assert "miniature, shortened" in own and "92.41" not in own
    assert "| ResNet20/EN | not run in full | 92.41 |" in page


@pytest.mark.wide
def test_a_run_whose_loss_becomes_nan_is_recorded_as_such(fresh_processes, tmp_path, capfd):
    words = ("en-5", "ResNet20/BN", "--miniature", "optim_wrapper.optimizer.lr=1e30")
    assert run(tmp_path, *words) == 1
    error = capfd.readouterr().err
    assert "error: the loss became infinite or NaN at iteration" in error
    (path,) = tmp_path.rglob("record.json")
    found = json.loads(path.read_text())
    assert found["diverged"].startswith("the loss became infinite or NaN at iteration ")
    assert found["run"] < 2 and "unfinished" not in found["label"]


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
    (one,) = planned(cell, miniature=True, work_dir=tmp_path)
    if one.cell.table == "ilm-6":
        pytest.importorskip("torchmetrics", reason="needs torchmetrics, of ilm_plugins[pix2pix]")
    if one.cell.config.endswith(".yaml"):
        pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    assert run(tmp_path, *cell.split(" ", 1), "--miniature") == 0
    found = read_record(one)
    assert found["figures"].keys() == record.measures(one.cell).keys() - {"LPIPS"}
    assert found["label"].startswith("miniature, shortened: 2 of ") and found["curve"]


@pytest.mark.long
def test_a_checkpoint_of_one_data_set_is_tested_on_another(tmp_path):
    for cell in ("en-2 ResNet50/BN", "en-4 ImageNet -> WebVision/BN"):
        assert run(tmp_path, *cell.split(" ", 1), "--miniature") == 0
    (one,) = planned(cell, miniature=True, work_dir=tmp_path)
    assert read_record(one)["figures"].keys() == {"top-1", "top-5"}


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
