"""Parts of a run that both frameworks share: processes, the record, the config."""

import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from torch.utils.data import DataLoader

from helpers import workers
from helpers.processes import SERVER
from helpers.trainings import SHAPES, assert_gone, write_mmengine_config
from ilm_plugins import frameworks
from ilm_plugins.__main__ import main
from ilm_plugins.cli import train
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.length import Length
from ilm_plugins.frameworks.run import environment, processes, training
from ilm_plugins.frameworks.run.options import ProcessOptions, RunOptions
from ilm_plugins.frameworks.run.record import RunRecord, read_record, write_divergence, write_record


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
    of_run = ProcessOptions(num_processes=2, num_machines=number, **machine)
    process = SERVER.Process(target=workers.launch_one_machine, args=(folder, what, of_run))
    process.start()
    return process


CAUSES = {"mistake": "set SOMETHING", "crash": "FloatingPointError: the loss is NaN"}


@pytest.fixture(scope="module", params=[*CAUSES.items(), ("killed", ".*SIGKILL")], ids=str)
def failed(request, tmp_path_factory):
    """The error of a launch whose second rank failed, the expected cause, and all process IDs."""
    what, cause = request.param
    folder = tmp_path_factory.mktemp("failed")
    # A fork of this process would collect the garbage of earlier tests, which can crash the fork.
    with workers.start_by("forkserver"), pytest.raises(UserError) as error:
        processes.launch(partial(workers.meet, folder, what), ProcessOptions(num_processes=2))
    return error, cause, ranks(folder, 2)


def test_a_failed_rank_is_named(failed):
    error, cause, _ = failed
    error.match(f"rank 1 failed: {cause}")


def test_a_launch_leaves_the_handlers_of_signals(failed):
    """Of the process that launches, as a notebook."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failed_rank_ends_all(failed):
    *_, pids = failed
    assert_gone(pids)


def test_processes_that_resume_from_different_files_are_told():
    words = r"rank 0 continues from iter_0\.pth, rank 1 from iter_1\.pth; copy the output folder"
    with workers.start_by("forkserver"), pytest.raises(UserError, match=words):
        processes.launch(workers.resume_by_own_files, ProcessOptions(num_processes=2))


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
def test_two_machines_end_with_one_status(tmp_path, what, status):
    port = workers.free_port()
    machines = [start(tmp_path, what, 2, rank, port) for rank in range(2)]
    for machine in machines:
        machine.join(180)
    assert [machine.exitcode for machine in machines] == [status, status]
    assert_gone(ranks(tmp_path, 4))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_gpus": -1}, "--num-gpus -1: this machine has 2 GPUs; give 0 to 2"),
        ({"num_gpus": 1, "resume": True}, "has 0 GPUs; give 0, the CPU"),  # too old a driver
        ({"num_gpus": 2, "resume": True}, "give 0, the CPU, with --num-processes 2"),
        ({"num_gpus": 1, "num_processes": 2}, "--num-processes 2 with --num-gpus 1"),
        ({"num_machines": 2, "machine_rank": 2, "dist_url": "tcp://a:1"}, "--machine-rank 2"),
        ({"num_machines": 2, "dist_url": "tcp://a"}, "needs --dist-url"),
        ({"overrides": ("A", "--resume")}, "--resume comes after an override"),
        ({"amp": True}, "--amp is for GPUs"),
        ({"tta": True}, "--tta is for MMEngine's configs"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(options, words, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: "resume" not in options)
    monkeypatch.setattr(training, "launch", lambda *_: None)  # nothing waits for another machine
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # restored afterwards
    (tmp_path / "config.py").write_text("import detectron2\nmodel = None")
    with pytest.raises(UserError, match=words):
        training.start(RunOptions(str(tmp_path / "config.py"), **options))


@pytest.mark.parametrize(
    "environment, is_refused",
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, True),  # torchrun, accelerate
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, False),  # torchrun of one process
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"}, False),  # a job of Kubeflow
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False),
    ],
)
def test_only_processes_of_another_launcher_are_refused(environment, is_refused, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = "torchrun, started 2 processes; start one a machine, without it, and give --num-gpus"
    with pytest.raises(UserError, match=words) if is_refused else nullcontext():
        processes.check_processes(ProcessOptions(num_processes=2))


def test_a_run_on_the_cpu_hides_gpus_before_it_imports_a_framework(monkeypatch):
    gpus, seen = "CUDA_VISIBLE_DEVICES", []
    monkeypatch.setenv(gpus, "0")
    monkeypatch.setattr(training, "kind_of", lambda _: seen.append(os.environ[gpus]))
    monkeypatch.setattr(training, "launch", lambda *_: None)
    training.start(RunOptions(str(SHAPES)))
    assert seen == [""]


@pytest.mark.parametrize("eval_only", [False, True], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["yaml", "mmengine"])
def test_a_run_of_a_norm_that_no_layer_has_is_refused(
    tmp_path, monkeypatch, datasets, kind, eval_only
):
    config, overrides = SHAPES, ("MODEL.ROI_BOX_HEAD.NUM_CONV", "0", "OUTPUT_DIR", str(tmp_path))
    if kind == "mmengine":
        pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
        config = write_mmengine_config(tmp_path / "fcn.py", datasets)
        head = "num_convs=0", "concat_input=False", "channels=128", "norm_cfg.type=EN"
        overrides = f"work_dir={tmp_path}", "load_from=a", *(f"model.decode_head.{o}" for o in head)
        overrides += ("model.decode_head.norm_cfg._delete_=True",)
    else:
        pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # restored afterwards
    with pytest.raises(
        UserError, match=r"(ROI_BOX_HEAD\.NORM|decode_head\.norm_cfg) is '(ILMG|E)N'"
    ):
        training.start(RunOptions(str(config), overrides, eval_only=eval_only))


@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("kind", ["yaml", "mmengine"])
def test_a_record_says_whether_the_config_trains_in_mixed_precision(
    tmp_path, monkeypatch, datasets, kind, is_mixed
):
    config, overrides = SHAPES, ("SOLVER.AMP.ENABLED", str(is_mixed), "OUTPUT_DIR", str(tmp_path))
    if kind == "mmengine":
        pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
        config = write_mmengine_config(tmp_path / "fcn.py", datasets)
        wrapper = "AmpOptimWrapper" if is_mixed else "OptimWrapper"
        overrides = f"work_dir={tmp_path}", f"optim_wrapper.type={wrapper}"
    else:
        pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    # Both frameworks train in mixed precision on GPUs only.
    opened = type(frameworks.open_config(str(config)))
    monkeypatch.setattr(opened, "run", lambda _, record: record.start(Length(planned=1)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # restored afterwards
    training.start(RunOptions(str(config), overrides))
    assert read_record(tmp_path)["amp"] == is_mixed


def begin(folder, options=None, norms=None, **settings):
    """Begin a run of three epochs, and return its record, which has no metrics yet."""
    options = options or RunOptions("a.py")
    record = RunRecord(folder, options, "openmmlab", norms, options.amp)
    given = {"resumes": settings.pop("resumes")} if "resumes" in settings else {}
    length = Length(**{"unit": "epochs", "planned": 3, "batch": 4, "images": 8, **settings})
    record.start(length, seed=1, **given)
    return record


NORMS = {"model.norm_cfg.type": "GN", "model.norm_cfg.num_groups": 32}


@pytest.mark.parametrize(
    "now, change",
    [
        (NORMS | {"model.norm_cfg.num_groups": 16}, "num_groups was 32 and is 16"),
        (NORMS | {"model.norm_cfg.type": "EN"}, "type was 'GN' and is 'EN'"),
        (NORMS | {"model.norm_cfg.sync": True}, "sync was None and is True"),
        (None, "type was 'GN' and is None"),
    ],
)
def test_a_training_is_not_resumed_with_other_norms(tmp_path, now, change):
    begin(tmp_path, norms=NORMS)
    other = RunRecord(tmp_path, RunOptions("a.py", resume=True), "openmmlab", norms=now)
    other.check_norms()  # without a checkpoint, it starts from the beginning
    (tmp_path / "last_checkpoint").touch()
    with pytest.raises(UserError, match=rf"--resume: the norms of .* are others: .*{change}"):
        other.check_norms()
    RunRecord(tmp_path, RunOptions("a.py", resume=True), "openmmlab", norms=NORMS).check_norms()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one file and one commit, in place of the project's."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "file").write_text("committed")
    who = "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"
    for words in (["init", "-q"], ["add", "file"], [*who, "commit", "-q", "-m", "Add a file"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    monkeypatch.setattr(environment, "ROOT", folder)
    return folder


def test_the_commit_is_of_the_checkout(checkout):
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert environment.commit() == done.stdout[:12]


def test_the_commit_of_a_changed_checkout_says_so(checkout):
    before = environment.commit()
    (checkout / "file").write_text("changed")
    assert environment.commit() == f"{before}+changes"


def test_without_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() is None


def begin_epochs(folder, *epochs):
    """Begin or resume a run, record (epoch, loss), and return its record."""
    record = begin(folder, RunOptions("a.py", ("lr=1 2",), resume=True))
    for epoch, loss in epochs:
        record.point(epoch, loss=loss)
    return record


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The record of a run that was killed after 100 seconds, resumed, and tested."""
    folder = tmp_path_factory.mktemp("record")
    begin_epochs(folder, (1, 2.0), (2, 1.0), (3, 0.5))
    write_record(folder / "record.json", {**read_record(folder), "seconds": 100.0})
    begin_epochs(folder, (2, 1.5), (3, 1.25)).finish({"top1": 50.0}, images=5)
    return read_record(folder)


def test_a_record_has_points_before_the_kill_too(record):
    points = [(entry["epochs"], entry["loss"]) for entry in record["curve"]]
    assert points == [(1, 2.0), (2, 1.5), (3, 1.25)]


def test_seconds_before_the_kill_count(record):
    assert record["seconds"] > 100


def test_a_record_has_the_environment(record):
    assert record["device"].startswith("CPU, ")
    assert record["versions"]["torch"]


def test_a_record_names_only_the_packages_of_its_kind_of_config(tmp_path):
    """mmdet imports detectron2 if it is installed."""
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    for packages in (["mmdet"], ["detectron2"]):
        RunRecord(tmp_path / packages[0], RunOptions("a.py"), "", packages=packages).start()
        versions = read_record(tmp_path / packages[0])["versions"]
        assert ("detectron2" in versions) == ("detectron2" in packages)


def test_a_record_is_read_by_strict_readers_with_null_for_nan(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not of JSON")

    record = begin(tmp_path)
    record.point(1, loss=float("inf"), other=1.5)
    record.finish({"AP": float("nan"), "low": float("-inf"), "AP50": 2.0})
    found = json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse)
    (point,) = found["curve"]
    assert (point["loss"], point["other"]) == (None, 1.5)
    assert found["metrics"] == {"": {"AP": None, "low": None, "AP50": 2.0}}


def test_the_first_point_has_the_seconds_since_the_start(tmp_path, monkeypatch):
    clock = iter([10.0, 15.0, 16.0, 20.0])
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("ilm_plugins.frameworks.run.record.time", fake)
    record = begin(tmp_path)
    for epoch in (1, 2, 2):  # the last of a validation
        record.point(epoch)
    found = read_record(tmp_path)
    assert found["seconds"] == 10


@pytest.fixture
def continued(tmp_path, monkeypatch):
    """The record of a run that was begun on the CPU, and resumed twice on other machines."""
    monkeypatch.setattr(environment, "commit", iter("abb").__next__)
    begin(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "H100")
    flags = dict.fromkeys(("resume", "tta", "amp", "unsafe"), True)
    for _ in range(2):
        begin(tmp_path, RunOptions("a.py", num_gpus=2, num_machines=3, **flags))
    return read_record(tmp_path)


def test_a_record_has_each_commit_of_a_run(continued):
    assert continued["commit"] == "a, b"


def test_a_record_has_each_device_of_a_run(continued):
    assert continued["device"] == f"{environment.device(0)}, then 2 x H100"


def test_a_record_has_the_options_of_a_run(continued):
    assert (continued["processes"], continued["amp"]) == (6, True)


@pytest.fixture
def evaluated(tmp_path):
    """A folder with the record of a training, and of an evaluation afterwards."""
    begin(tmp_path).point(3, loss=1.0)
    options = RunOptions("a.py", eval_only=True, resume=True, tta=True)
    begin(tmp_path, options, planned=0).finish({"top1": 60.0})
    return tmp_path


def test_an_evaluation_keeps_the_record_of_the_training(evaluated):
    found = read_record(evaluated)
    assert (found["planned"], found["run"], found["metrics"]) == (3, 3, {"tta": {"top1": 60.0}})


def test_an_evaluation_of_another_checkpoint_stands_beside_the_trainings_metrics(evaluated):
    options = RunOptions("a.py", ("load_from=b.pth",), eval_only=True)
    begin(evaluated, options, planned=0).finish({"top1": 1.0}, 5, "b.pth")
    found = read_record(evaluated)
    (other,) = found["other evaluations"]
    assert found["metrics"] == {"tta": {"top1": 60.0}}
    assert (other["metrics"], other["command"].split()[-1]) == ({"top1": 1.0}, "load_from=b.pth")


def test_an_evaluation_of_the_last_checkpoint_by_its_name_is_the_trainings(evaluated):
    (evaluated / "last_checkpoint").write_text("b.pth")
    (evaluated / "b.pth").touch()
    options, weights = RunOptions("a.py", eval_only=True), str(evaluated / "b.pth")
    begin(evaluated, options, planned=0).finish({"top1": 1.0}, 5, weights)
    assert read_record(evaluated)["metrics"] == {"tta": {"top1": 60.0}, "": {"top1": 1.0}}


def evaluate(folder, **metrics):
    options = RunOptions("a.py", eval_only=True, resume=True)
    begin(folder, options, planned=0).finish(metrics, 5)
    return read_record(folder)


def test_a_later_evaluation_stands_beside_the_metrics_that_a_training_has(tmp_path):
    begin(tmp_path, planned=1).point(1)
    assert evaluate(tmp_path, top1=50.0)["metrics"] == {"": {"top1": 50.0}}
    found = evaluate(tmp_path, top1=1.0)
    assert found["metrics"] == {"": {"top1": 50.0}}
    assert [other["metrics"] for other in found["other evaluations"]] == [{"top1": 1.0}]


def test_a_complete_training_that_is_resumed_keeps_its_metrics(tmp_path):
    begin_epochs(tmp_path, (1, 2.0), (2, 1.0), (3, 0.5)).finish({"top1": 50.0}, images=5)
    begin_epochs(tmp_path)
    found = read_record(tmp_path)
    assert (found["metrics"], found["test images"]) == ({"": {"top1": 50.0}}, 5)


def test_a_training_that_repeats_an_epoch_loses_its_metrics(tmp_path):
    begin_epochs(tmp_path, (1, 2.0), (2, 1.0), (3, 0.5)).finish({"top1": 50.0}, images=5)
    begin_epochs(tmp_path, (3, 0.5))
    assert not read_record(tmp_path)["metrics"]


def test_a_training_that_is_resumed_for_more_epochs_has_no_metrics(tmp_path):
    begin_epochs(tmp_path, (3, 0.5)).finish({"top1": 50.0}, images=5)
    begin(tmp_path, RunOptions("a.py", resume=True), planned=4)
    assert not read_record(tmp_path)["metrics"]


@pytest.mark.parametrize("changed", [False, True])
def test_the_command_gives_the_options_back(changed, monkeypatch):
    other = {bool: True, int: 2}
    parts = (*fields(ProcessOptions), *fields(RunOptions))
    given = {part.name: other[type(part.default)] for part in parts if type(part.default) in other}
    del given["machine_rank"]
    options = RunOptions("a b.py", overrides=("x=1",), **(given if changed else {}))
    parsed = Mock()
    monkeypatch.setattr(train, "start", parsed)
    assert main(shlex.split(options.command())[3:]) == 0
    parsed.assert_called_once_with(options)


def test_the_command_has_no_address_of_a_cluster():
    given = {"num_machines": 2, "machine_rank": 1, "dist_url": "tcp://a:1"}
    command = RunOptions("a.py", **given).command()
    assert command.endswith("--config-file a.py --num-gpus 0 --num-machines 2")


def test_the_command_of_a_training_starts_it_anew():
    assert "--resume" not in RunOptions("a.py", resume=True).command()


def test_a_record_has_the_command_of_a_later_evaluation(evaluated):
    options = RunOptions("a.py", ("x=1",), eval_only=True, resume=True)
    RunRecord(evaluated, options, "openmmlab").finish({"top1": 1.0}, 5)
    assert read_record(evaluated)["evaluation"].endswith("--eval-only --resume x=1")


def test_an_evaluation_replaces_the_record_of_another_one(tmp_path):
    for weights in ("a.pth", "b.pth"):
        options = RunOptions("a.py", (f"load_from={weights}",), eval_only=True)
        begin(tmp_path, options, planned=0).finish({weights: 1.0}, 5, weights)
    found = read_record(tmp_path)
    assert found["metrics"] == {"": {"b.pth": 1.0}}
    assert found["command"].endswith("load_from=b.pth")


@pytest.mark.parametrize(
    "text",
    [
        *('{"run": null}', '{"metrics": []}', '{"seconds": [[]]}'),
        '{"metrics": {"": {"top1": 1' + "0" * 400 + "}}}",
        '{"curve": [{"iterations": [1], "loss": 1.0}]}',
        *('{"device": 1}', '{"commit": [1]}', '{"norms": []}', '{"other evaluations": {}}'),
    ],
)
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match=r"record\.json is .*; move it away"):
        read_record(tmp_path)


def test_an_evaluation_with_augmentation_keeps_the_plain_one(tmp_path):
    for tta in (False, True):
        options = RunOptions("a.py", eval_only=True, tta=tta)
        begin(tmp_path, options, planned=0).finish({"top1": 1.0}, 5)
    assert read_record(tmp_path)["metrics"].keys() == {"", "tta"}


def test_without_a_checkpoint_no_curve_is_continued(tmp_path):
    begin_epochs(tmp_path, (1, 2.0))
    begin(tmp_path, RunOptions("a.py", resume=True), resumes=False)
    assert read_record(tmp_path)["curve"] == []


@pytest.mark.parametrize("resume", [True, False], ids=["resumed", "new"])
def test_a_training_has_neither_metrics_nor_divergence_of_an_earlier_one(evaluated, resume):
    write_divergence(evaluated, "NaN at iteration 7")
    begin(evaluated, RunOptions("a.py", resume=resume))
    found = read_record(evaluated)
    assert "diverged" not in found
    assert not found["metrics"]


@pytest.mark.parametrize("resume", [True, False], ids=["resumed", "new"])
def test_a_training_keeps_the_curve_if_it_is_resumed(evaluated, resume):
    begin(evaluated, RunOptions("a.py", resume=resume))
    assert bool(read_record(evaluated)["curve"]) == resume


def test_other_ranks_than_0_write_only_that_the_training_diverged(tmp_path, monkeypatch):
    begin(tmp_path)
    before = read_record(tmp_path)
    monkeypatch.setenv("RANK", "1")
    record = begin(tmp_path, RunOptions("b.py"))
    record.point(1)
    record.finish({"top1": 50.0})
    assert read_record(tmp_path) == before
    write_divergence(tmp_path, "NaN at iteration 7")
    assert read_record(tmp_path) == {**before, "diverged": "NaN at iteration 7"}
    processes.launch(lambda: record.point(1), ProcessOptions())
    assert read_record(tmp_path)["run"] == 1, "a single process has rank 0"
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):  # the folder is not made again
        record.point(1)


def test_the_framework_of_a_config(tmp_path):
    codes = ["import detectron2, mmcv", "from detectron2 import a\nb = dict(type='a')", "import a"]
    found = dict.fromkeys(codes, "detectron2")
    codes = [f"{name} = None" for name in ("_base_", "default_scope", "custom_imports")]
    codes += ["from mmseg import a", "model = dict(type='a')", "norm = {'type': 'a'}"]
    for code, framework in (found | dict.fromkeys(codes, "openmmlab")).items():
        for name in ("a.py", "a.yaml", "a.yml"):
            (tmp_path / name).write_text(code)
            expected = framework if name == "a.py" else "detectron2"
            assert frameworks.framework_of(str(tmp_path / name)) == expected, code


@pytest.mark.parametrize(
    "has_gpu, options, expected",
    [
        *((True, {"device": None}, "cuda"), (False, {"device": None}, "cpu")),
        *((True, {}, "cpu"), (True, {"device": "cuda:1"}, "cuda:1")),
    ],
    ids=str,
)
def test_the_device_is_the_cpu_the_named_one_or_where_none_is_named_a_gpu_if_there_is_one(
    monkeypatch, has_gpu, options, expected
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    kind = SimpleNamespace(read=lambda path, overrides, device, amp: device)
    monkeypatch.setattr(frameworks.config, "kind_of", lambda path: kind)
    assert frameworks.open_config(str(SHAPES), **options) == expected


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing.yaml", "does not exist; give a path, or ilm_plugins://NAME"),
        ("missing.json", "does not exist"),
        ("folder.py", "is a folder"),
        ("a.json", r"is no \.yaml or \.py file"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path, name, words):
    (tmp_path / "a.json").touch()
    (tmp_path / "folder.py").mkdir()
    path = str(tmp_path / name)
    for read in (frameworks.open_config, lambda path: training.start(RunOptions(path))):
        with pytest.raises(UserError, match=f"config file '{path}' {words}"):
            read(path)


WRONG_CONFIGS = {
    "type.yaml": ("SOLVER: {MAX_ITER: many}", r"Type mismatch .* for config key: SOLVER.MAX_ITER"),
    "key.yaml": ("SOLVER: {MAXITER: 3}", "Non-existent config key: SOLVER.MAXITER"),
    "base.yaml": ("_BASE_: none.yaml", "none.yaml"),
    "lazy.py": ("import detectron2\nmodel = train = absent", "in line 2: name 'absent' is not"),
    "module.py": ("import detectron2, absent\nmodel = 1", "absent.*; install the package"),
    "mm.py": ("default_scope = absent\nmodel = 1", "name 'absent' is not defined"),
    "mm_merge.py": ("_base_ = 'ilm_plugins::pix2pix/facades_in_in.py'\noptimizer=3\n"
    "model = dict(lambda_l1=dict(a=1))", "lambda_l1=.* cannot inherit"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_wrong_value_in_a_config_is_one_line(tmp_path, monkeypatch, name):
    for module in ("detectron2", "mmengine"):
        pytest.importorskip(module, reason=f"needs {module}")
    text, words = WRONG_CONFIGS[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    with pytest.raises(UserError, match=words) as error:
        frameworks.open_config(name)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


class Trainer:
    """Keeps the iterator of a loader, and itself in a reference cycle, as MMEngine's Runner."""

    def __init__(self):
        self.batches = iter(DataLoader(range(100), num_workers=2))
        self.hook = self


def test_workers_of_data_loaders_end_by_themselves_with_the_training():
    """The garbage collector would wait five seconds for each, then terminate it."""
    trainer = Trainer()
    workers = trainer.batches._workers
    processes.leave_group()
    del trainer
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]
