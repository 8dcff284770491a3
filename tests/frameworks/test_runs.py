"""Parts of a run that both frameworks share: processes, the lock, the record, the config."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock

import fresh
import workers
from ilm_plugins import frameworks
from ilm_plugins.cli import train
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import processes, record
from ilm_plugins.frameworks.lock import lock
from ilm_plugins.frameworks.options import RunOptions
from runs import assert_gone


def ranks(folder, count, seconds=120):
    """The process ID of each rank, as soon as all have joined the group."""
    files = [Path(folder, f"rank{rank}") for rank in range(count)]
    until = time.monotonic() + seconds
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < until, f"after {seconds} s not all of {count} processes have met"
        time.sleep(0.1)
    assert {file.read_text().split()[0] for file in files} == {str(count)}
    return [int(file.read_text().split()[1]) for file in files]


def start(folder, what, number=1, rank=0, port=0):
    """Start the two processes of a machine, where each writes the file of its rank in a folder."""
    machine = {"machine_rank": rank, "dist_url": f"tcp://127.0.0.1:{port}"}
    options = RunOptions(what, num_processes=2, num_machines=number, **machine)
    process = fresh.SERVER.Process(target=workers.launch_one_machine, args=(folder, options))
    process.start()
    return process


@pytest.mark.parametrize(
    "what, cause",
    [
        ("mistake", "set SOMETHING"),
        ("crash", "FloatingPointError: the loss is NaN"),
        ("killed", ".*SIGKILL"),
    ],
)
def test_a_failed_rank_ends_all_and_is_named(tmp_path, monkeypatch, what, cause):
    monkeypatch.chdir(tmp_path)
    with workers.start_by("fork"), pytest.raises(UserError, match=f"rank 1 failed: {cause}"):
        processes.launch(workers.meet, RunOptions(what, num_processes=2))
    assert_gone(ranks(tmp_path, 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_process(tmp_path, number):
    process = start(tmp_path, "sleep")
    pids = ranks(tmp_path, 2)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode not in (0, None)
    assert_gone(pids)


@pytest.mark.wide
@pytest.mark.parametrize("what, status", [("done", 0), ("killed", 1)])
def test_two_machines_meet_and_end_together(tmp_path, what, status):
    port = workers.free_port()
    machines = [start(tmp_path, what, 2, rank, port) for rank in range(2)]
    for machine in machines:
        machine.join(180)
    assert [machine.exitcode for machine in machines] == [status, status]
    assert_gone(ranks(tmp_path, 4))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_gpus": -1}, "--num-gpus -1"),
        ({"num_machines": 2, "machine_rank": 2, "dist_url": "tcp://a:1"}, "--machine-rank 2"),
        ({"num_machines": 2}, "--dist-url"),
        ({"overrides": ("A", "--resume")}, "--resume comes after an override"),
        ({"amp": True}, "--amp is for GPUs"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(options, words, tmp_path):
    pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
    config = tmp_path / "config.py"
    config.write_text("default_scope = 'mmengine'")
    with pytest.raises(UserError, match=words):
        train.run(RunOptions(str(config), **options))


def test_without_a_gpu_the_advice_is_the_cpu(monkeypatch):
    """As with a driver that is too old."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="has 0 GPUs; give 0, the CPU"):
        processes.check_processes(RunOptions("config.py", num_gpus=1))


def test_one_training_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("ilm_plugins.frameworks.lock.PATIENCE", 0.1)
    with lock(tmp_path / "new"), pytest.raises(UserError, match="in use"), lock(tmp_path / "new"):
        pass
    with lock(tmp_path / "new"):
        pass
    other = FileLock(tmp_path / "new" / ".lock")  # the one file of all processes
    with other, pytest.raises(UserError, match="in use"), lock(tmp_path / "new"):
        pass


def begin(folder, options, planned=3):
    record.start(
        folder, options, framework="openmmlab", unit="epochs", planned=planned, batch=4, images=8,
        seed=1,
    )  # fmt: skip


def test_a_record_has_what_was_run_and_what_came_out(tmp_path):
    begin(tmp_path, RunOptions("a.py", ("lr=1 2",), resume=True))
    for epoch, loss in ((1, 2.0), (2, 1.0), (3, 0.5)):
        record.point(tmp_path, epoch, loss=loss)
    record.write(tmp_path / "record.json", {**record.read(tmp_path), "seconds": 100.0})
    # Killed here, and resumed from the checkpoint of the first epoch.
    begin(tmp_path, RunOptions("a.py", ("lr=1 2",), resume=True))
    record.point(tmp_path, 2, loss=1.5)
    assert len(record.read(tmp_path)["curve"]) == 2, "the lost third epoch has no point"
    record.point(tmp_path, 3, loss=1.25)
    record.finish(tmp_path, record.PLAIN, {"top1": 50.0}, images=5)
    found = record.read(tmp_path)
    assert found["command"] == (
        "python -m ilm_plugins train --config-file a.py --num-gpus 0 'lr=1 2'"
    )
    points = [(entry["epochs"], entry["loss"]) for entry in found["curve"]]
    assert points == [(1, 2.0), (2, 1.5), (3, 1.25)]
    assert all(entry["cpu"] >= 0 for entry in found["curve"])
    assert (found["run"], found["planned"], found["images"], found["batch"]) == (3, 3, 8, 4)
    assert found["metrics"] == {"": {"top1": 50.0}} and found["test images"] == 5
    assert found["seconds"] > 100 and found["device"].startswith("CPU, ")
    assert found["versions"]["torch"] and found["seed"] == 1


def test_the_first_point_has_the_seconds_since_the_start(tmp_path, monkeypatch):
    clocks = iter([(10.0, 1.0), (15.0, 3.0), (16.0, 4.0)])
    monkeypatch.setattr(record, "_clocks", lambda: next(clocks))
    begin(tmp_path, RunOptions("a.py"))
    record.point(tmp_path, 1)
    record.point(tmp_path, 2)
    found = record.read(tmp_path)
    assert found["seconds"] == 6 and [point["cpu"] for point in found["curve"]] == [2, 1]


def test_an_evaluation_keeps_the_record_of_the_training(tmp_path):
    begin(tmp_path, RunOptions("a.py"))
    record.point(tmp_path, 3, loss=1.0)
    begin(tmp_path, RunOptions("a.py", eval_only=True), planned=0)
    record.finish(tmp_path, record.TTA, {"top1": 60.0})
    found = record.read(tmp_path)
    assert (found["planned"], found["run"], found["metrics"]) == (3, 3, {"tta": {"top1": 60.0}})


def test_a_new_training_begins_a_new_record(tmp_path):
    begin(tmp_path, RunOptions("a.py"))
    record.diverged(tmp_path, "NaN at iteration 7")
    assert record.read(tmp_path)["diverged"] == "NaN at iteration 7"
    begin(tmp_path, RunOptions("a.py"))
    assert "diverged" not in record.read(tmp_path)


def test_only_rank_0_writes_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    begin(tmp_path, RunOptions("a.py"))
    assert record.read(tmp_path) is None


@pytest.mark.parametrize(
    "name, code, framework",
    [
        ("a.yaml", "MODEL: {}", "detectron2"),
        ("a.py", "from detectron2.config import LazyCall\nmodel = dict(type='a')", "detectron2"),
        ("a.py", "_base_ = './b.py'", "openmmlab"),
        ("a.py", "model = dict(type='ResNet')", "openmmlab"),
        ("a.py", "from .base import model", "detectron2"),
    ],
)
def test_the_framework_of_a_config(tmp_path, name, code, framework):
    path = tmp_path / name
    path.write_text(code)
    assert frameworks.framework_of(str(path)) == framework


@pytest.mark.parametrize("name", ["missing.yaml", "config.json"])
def test_a_path_that_is_no_config(tmp_path, name):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match=r"no \.yaml or \.py file"):
        frameworks.open_config(str(tmp_path / name))


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    (tmp_path / "run").mkdir()
    begin(tmp_path / "run", RunOptions("a.py"))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        record.point(tmp_path / "run", 1, loss=1.0)
