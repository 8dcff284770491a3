"""Runs of a comparison at the same time, in this process and on a cluster."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs scipy, of the extra ilm_plugins[compare]")

from ilm_plugins.cli import exit_on_sigterm
from ilm_plugins.comparison.run import executors, slurm_jobs, tasks
from ilm_plugins.comparison.run.executors import Execution
from ilm_plugins.comparison.run.tasks import Step, Task
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.run.record import is_complete_record, read_record, write_record

#: A command "train FOLDER SECONDS STATUS" which takes two steps, and adds its times to a journal.
TRAIN = """
import json, os, sys, time
_, folder, seconds, status = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
begin, names = time.time(), ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
for run in (1, 2):
    time.sleep(float(seconds) / 2)
    record = {"planned": 2, "run": run, "metrics": {"": {"top1": 1.0}} if run == 2 else {}}
    if status == "0":
        with open(folder + "/partial", "w") as file:
            json.dump(record, file)
        os.replace(folder + "/partial", folder + "/record.json")
env = {name: os.environ.get(name) for name in names}
with open("journal", "a") as file:
    print(json.dumps({"folder": folder, "times": [begin, time.time()], "env": env}), file=file)
sys.exit(int(status))
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A function that makes tasks of quick commands, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "PAUSE", 0.01)
    monkeypatch.setattr(
        tasks, "command_line", lambda words: [sys.executable, "-S", "-c", TRAIN, *words]
    )

    def make(*names, seconds=0.2, status=0):
        steps = [Step(["train", n, str(seconds), str(status)], Path(n)) for n in names]
        return [Task(step.folder.name, 0, step) for step in steps]

    return make


def run(todo, num_gpus=0, check=lambda task: None, **options):
    Execution(**options).run(todo, Path("out"), num_gpus, check)


def journal():
    return [json.loads(line) for line in Path("journal").read_text().splitlines()]


def test_runs_are_executed_two_at_a_time(fakes):
    run(fakes(*"abcd"), jobs=2)
    times = [entry["times"] for entry in journal()]
    at_once = [sum(begin <= moment < end for begin, end in times) for moment, _ in times]
    assert len(times) == 4
    assert max(at_once) == 2


def test_runs_begin_in_the_order_of_the_comparison(fakes):
    run(fakes(*"badc"), jobs=2)
    begun = sorted(journal(), key=lambda entry: entry["times"])
    assert {entry["folder"] for entry in begun[:2]} == {"a", "b"}


def test_a_run_that_fails_does_not_end_others(fakes):
    run(fakes("a", status=1) + fakes("b"))
    assert [is_complete_record(read_record(name)) for name in "ab"] == [False, True]


def test_only_what_is_missing_is_run_again(fakes):
    run(fakes("a", "b"), jobs=2)
    run(fakes("a", "b", "c"))
    assert sorted(entry["folder"] for entry in journal()) == ["a", "b", "c"]


def test_an_error_of_a_check_ends_the_other_runs(fakes):
    def check(task):
        if (read_record(task.training.folder) or {}).get("metrics"):
            raise UserError("no such metric")

    begin = time.monotonic()
    with pytest.raises(UserError, match="no such metric"):
        run(fakes("a") + fakes("b", seconds=60), jobs=2, check=check)
    assert time.monotonic() - begin < 30
    assert [entry["folder"] for entry in journal()] == ["a"]


#: A command that takes a while to end after SIGTERM, as one that writes a checkpoint.
SLOW_END = """
import signal, sys, time
def end(*_):
    time.sleep(1)
    open("ended", "w")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open("begun", "w")
time.sleep(60)
"""


@pytest.mark.parametrize("execute", [lambda task: run([task]), Task.__call__], ids=["here", "job"])
def test_sigterm_waits_for_the_processes_of_runs(fakes, execute, monkeypatch):
    words = [sys.executable, "-S", "-c", SLOW_END]
    monkeypatch.setattr(tasks, "command_line", lambda arguments: words)
    before = signal.getsignal(signal.SIGTERM)
    exit_on_sigterm()
    try:
        send = threading.Thread(target=terminate_this_process_when, args=[Path("begun")])
        send.start()
        with pytest.raises(SystemExit):
            execute(*fakes("a"))
        assert Path("ended").exists()
    finally:
        send.join()
        signal.signal(signal.SIGTERM, before)


def terminate_this_process_when(path):
    while not path.exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "visible, expected",
    [
        (None, ["0,1", "2,3"]),
        ("3,5,6,7", ["3,5", "6,7"]),
        ("GPU-8f0c, GPU-1a2b,MIG-77,GPU-9", ["GPU-8f0c,GPU-1a2b", "MIG-77,GPU-9"]),
    ],
)
def test_each_run_sees_gpus_of_its_own(fakes, monkeypatch, visible, expected):
    monkeypatch.setattr(executors, "available_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run(fakes(*"abc"), num_gpus=2, jobs=2)
    found = [(entry["times"], entry["env"]["CUDA_VISIBLE_DEVICES"]) for entry in journal()]
    assert {gpus for _, gpus in found} == {*expected}
    for (begin, end), gpus in found:
        assert sum(other == gpus and begin <= b < end for (b, _), other in found) == 1


def test_more_gpus_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(executors, "available_gpus", lambda: 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    with pytest.raises(UserError) as error:
        Execution(jobs=3).check(num_gpus=2)
    assert str(error.value) == (
        "--jobs 3 with --num-gpus 2 needs 6 GPUs, this machine has 5 "
        "(CUDA_VISIBLE_DEVICES=0,1,2,3,4); give fewer"
    )


@pytest.mark.parametrize(
    "cores, jobs, user, expected",
    [(8, 2, None, "4"), (2, 4, None, "1"), (8, 1, None, None), (8, 2, "3", "3")],
)
def test_runs_share_the_cores_unless_the_user_says_how(
    fakes, monkeypatch, cores, jobs, user, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(cores)})
    monkeypatch.delenv("OMP_NUM_THREADS")
    if user:
        monkeypatch.setenv("OMP_NUM_THREADS", user)
    run(fakes("a"), jobs=jobs)
    assert journal()[0]["env"]["OMP_NUM_THREADS"] == expected


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"planned": 2, "run": 1}, ["training"]),
        ({"planned": 2, "run": 2}, ["test"]),
        ({"planned": 2, "run": 1, "diverged": "the loss is NaN"}, []),
        ({"planned": 2, "run": 2, "diverged": "the loss is NaN"}, []),
    ],
)
def test_a_run_that_diverged_is_neither_trained_nor_tested_again(tmp_path, record, expected):
    write_record(tmp_path / "record.json", record)
    (tmp_path / "last_checkpoint").write_text("last.pth")
    evaluation = Step(["test"], tmp_path / "test")
    task = Task("EN", 0, Step(["training"], tmp_path), [evaluation])
    assert [word for step in task.missing() for word in step.arguments] == expected


class TestSlurm:
    """Options of submitit; the jobs themselves are in tests/wide/test_comparisons.py."""

    @pytest.fixture(autouse=True)
    def needs_submitit(self):
        pytest.importorskip("submitit", reason="needs submitit, of the extra ilm_plugins[cluster]")

    def test_jobs_that_ended_since_are_not_waited_for(self, tmp_path, monkeypatch):
        """The comparison was killed; one of its jobs failed afterwards, the other is running."""
        states = "JobID|State|NodeList\n7_0|FAILED|\n7_1|RUNNING|\n"
        for name, text in (("sacct", f"echo '{states}'"), ("srun", "")):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        executor = slurm_jobs.submitit().AutoExecutor(tmp_path, cluster="slurm")
        (tmp_path / "jobs.json").write_text('{"a, seed 0": "7_0", "b, seed 0": "7_1"}')
        assert [*slurm_jobs.jobs_of(executor, tmp_path / "jobs.json")] == ["b, seed 0"]

    @pytest.mark.parametrize(
        "word, message",
        [
            ("partitoin=gpu", "Unknown argument 'partitoin' for .*: .*partition"),
            ("timeout_min=1-00", r"\"timeout_min\" expected type .*int.* \"1-00\"\)"),
            ("nodes=2", "--slurm nodes: these jobs have no such option; give name, "),
        ],
        ids=["unknown", "type", "of the comparison"],
    )
    def test_an_option_that_jobs_cannot_have_is_named(self, word, message):
        with pytest.raises(UserError, match=message):
            Execution("slurm", slurm=[word]).check(0)
