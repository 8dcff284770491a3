"""Comparisons that are stopped in the middle, on this machine and on a stand-in of Slurm."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("submitit", reason="needs submitit, of the extra ilm_plugins[cluster]")


from helpers.trainings import mmengine_command, write_mmengine_config
from ilm_plugins.comparison.run import folders
from ilm_plugins.frameworks.run.record import is_complete_record, read_record

pytestmark = pytest.mark.wide
NORMS = "GN(num_groups=4)", "EN(reduction=8)"
RUNS = [Path("out", name, "seed0") for name in ("GN-num_groups=4", "EN-reduction=8")]
#: Long enough to be stopped in the middle; a data loader with a process of its own, and nothing
#: random in a step, as random numbers are not those of an unbroken training after a stop.
LONG = (
    "train_cfg.max_iters=60",
    "model.decode_head.dropout_ratio=0",
    "train_dataloader.num_workers=1",
)
ENDLESS = "train_cfg.max_iters=100000", "train_dataloader.num_workers=1"
SLURM = "--executor", "slurm", "--slurm", "partition=gpu", "timeout_min=10"
#: Environment variable by which the processes of a comparison are found.
MARK = "COMPARISON_OF_A_TEST"
#: Executes runs as compare does; the arguments are options and the commands of the runs.
EXECUTE = """
import json, sys
from pathlib import Path
from ilm_plugins.cli import exit_on_sigterm
from ilm_plugins.comparison.run.executors import Execution
from ilm_plugins.comparison.run.tasks import Step, Task

exit_on_sigterm()
options, commands = map(json.loads, sys.argv[1:])
tasks = [Task(folder, 0, Step(words, Path(folder))) for folder, words in commands.items()]
Execution(**options).run(tasks, Path("out"), 0, lambda task: None)
"""


class Command:
    """A process of Python, whose descendants have a mark in their environment."""

    def __init__(self, *words):
        self.mark = f"{MARK}={uuid4().hex}"
        name, value = self.mark.split("=")
        env = {**os.environ, name: value}
        with open("log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words], env=env, stdout=log, stderr=log
            )

    def wait_for(self, *paths):
        """Wait until one of several files is there while the process is running."""
        end = time.monotonic() + 300
        while not any(path.exists() for path in paths):
            assert self.process.poll() is None, Path("log").read_text()[-3000:]
            assert time.monotonic() < end, Path("log").read_text()[-3000:]
            time.sleep(0.02)

    def wait(self):
        assert self.process.wait(600) == 0, Path("log").read_text()[-3000:]

    def end_by(self, number):
        self.process.send_signal(number)
        self.process.wait(60)

    def processes(self):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # of another user, or gone
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def assert_gone(self, seconds=30):
        end = time.monotonic() + seconds
        while found := self.processes():
            assert time.monotonic() < end, f"processes {found} are left after {seconds} s"
            time.sleep(0.1)


def compare(config, *options):
    words = ["compare", config, *NORMS, "--num-gpus", "0", "--output", "out", "--jobs", "2"]
    seeds = [] if "--seeds" in options else ["--seeds", "0"]
    return Command("-m", "ilm_plugins", *words, *seeds, *options, "--opts", *LONG)


def execute(commands, **options):
    return Command("-c", EXECUTE, json.dumps(options), json.dumps(commands))


def training(config, folder, *options, opts=LONG):
    return mmengine_command(config, "--resume", *options, out=folder, opts=opts)


def checkpoints(*folders):
    return [Path(folder, "last_checkpoint") for folder in folders]


def results(folder="."):
    return [read_record(Path(folder, run))["metrics"] for run in RUNS]


def write_config(folder, datasets):
    path = write_mmengine_config(folder / "fcn.py", datasets)
    plain = """
train_dataloader["dataset"] = dict(
    **dataset, pipeline=[
        dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")
    ]
)
"""
    path.write_text(path.read_text() + plain)
    return str(path)


@pytest.fixture
def config(datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path, datasets)


@pytest.fixture(scope="module")
def unbroken(datasets, tmp_path_factory):
    """The metrics of a comparison that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compare(write_config(folder, datasets)).wait()
    return results(folder)


@pytest.fixture
def slurm(root, tmp_path, monkeypatch):
    """The folder of the jobs of a stand-in, whose commands are on PATH."""
    commands, jobs = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    jobs.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        text = (
            f'#!/bin/sh\nexec "{sys.executable}" -S "{root}/tests/stand_ins/slurm.py" {name} "$@"\n'
        )
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(jobs))
    yield jobs
    for job in filter(Path.is_dir, jobs.iterdir()):
        subprocess.run(["scancel", job.name], check=True)


def test_a_killed_comparison_ends_its_processes_and_continues(config, unbroken):
    killed = compare(config)
    killed.wait_for(*checkpoints(*RUNS))
    assert len(killed.processes()) >= 4, "two trainings, and a data loader"
    killed.end_by(signal.SIGKILL)
    killed.assert_gone()
    assert not all(is_complete_record(read_record(folder)) for folder in RUNS)
    compare(config).wait()
    assert any("resumed epoch: 0" in folders.log_of(folder).read_text() for folder in RUNS)
    assert results() == unbroken


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_trainings_of_several_processes_end_with_the_comparison(config, ending):
    """They are torch's elastic launch, its workers and data loaders."""
    words = training(config, "a", "--num-processes", "2", opts=ENDLESS)
    killed = execute({"a": words})
    killed.wait_for(*checkpoints("a"))
    assert len(killed.processes()) >= 5
    killed.end_by(ending)
    killed.assert_gone()


def test_slurm_requeues_a_run_that_is_preempted(config, unbroken, slurm):
    comparison = compare(config, *SLURM)
    comparison.wait_for(*checkpoints(RUNS[1]))
    for name in ("SIGTERM", "USR2"):
        subprocess.run(["scancel", "1001_1", "--signal", name], check=True)
    comparison.wait()
    script = (slurm / "1001.sh").read_text()
    assert "#SBATCH --array=0-1%2" in script
    assert "#SBATCH --partition=gpu" in script
    starts = [len((slurm / f"1001_{i}" / "starts").read_text().split()) for i in (0, 1)]
    assert starts == [1, 2]
    assert "resumed epoch: 0" in folders.log_of(RUNS[1]).read_text()
    assert results() == unbroken


def test_a_stopped_comparison_cancels_its_jobs_and_continues_here(config, slurm):
    first = execute({"a": training(config, "a", opts=ENDLESS)}, executor="slurm")
    first.wait_for(*checkpoints("a"))
    first.end_by(signal.SIGTERM)
    first.assert_gone()
    assert "these jobs are cancelled: 1001" in Path("log").read_text()
    reached = read_record("a")["run"]
    iterations = f"train_cfg.max_iters={reached + 2}"
    execute({"a": training(config, "a", opts=[iterations])}, executor="local").wait()
    assert is_complete_record(read_record("a"))
    assert "resumed epoch: 0" in Path("a.log").read_text()
