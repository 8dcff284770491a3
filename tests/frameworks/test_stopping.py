"""Runs that a signal stops: one line, no process left, and the last checkpoint as it was."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from faults import (
    ALONE,
    SLOWLY,
    children,
    finish,
    start,
    wait_for,
    wait_until_gone,
)
from ilm_plugins import checkpoints
from ilm_plugins.frameworks import stopping
from ilm_plugins.frameworks.command import RESUME, command
from ilm_plugins.frameworks.stopping import Stop, stoppable
from runs import (
    NO_TEST,
    detectron2_command,
    mmengine_command,
    pix2pix_command,
    write_mmengine_config,
)
from workers import rest


@pytest.fixture(autouse=True)
def interruptible():
    """Have SIGINT heeded here and in what is started, though a script's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("becomes", [None, SyntaxError, SystemExit, "nothing"])
def test_a_signal_is_told_whatever_becomes_of_it(number, status, becomes, capsys):
    def run():
        try:
            signal.raise_signal(number)
        except Stop:
            if becomes == "nothing":
                return
            raise (becomes or Stop)("of a framework") from None

    before = signal.getsignal(number)
    assert command(run) == status
    printed = capsys.readouterr().err
    assert printed.endswith(f": error: stopped by {number.name}. {RESUME}\n")
    assert printed.count("\n") == 1
    assert signal.getsignal(number) is before and stopping.received is None
    assert command(run, resumes=False) == status
    assert capsys.readouterr().err.endswith(f": error: stopped by {number.name}\n")


def test_what_no_signal_has_ended_is_as_it_was():
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error) as raised, stoppable():
            raise error
        assert not isinstance(raised.value, Stop)


def test_no_signal_is_heeded_that_was_ignored_or_in_another_thread():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Stop), stoppable():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    status = []
    thread = threading.Thread(target=lambda: status.append(command(lambda: 3)))
    thread.start()
    thread.join()
    assert status == [3]


def test_a_loaders_process_that_ends_does_not_interrupt_what_cleans_up():
    """torch raises in the main thread, wherever that is, that a loader's process has ended."""

    def raise_as_torch_does(number, frame):
        raise RuntimeError("DataLoader worker exited unexpectedly")

    cleaned = []
    before = signal.signal(signal.SIGCHLD, raise_as_torch_does)
    try:
        with pytest.raises(Stop), stoppable():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGCHLD)
                cleaned.append(True)
        assert signal.getsignal(signal.SIGCHLD) is raise_as_torch_does
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert cleaned


def test_children_are_ended():
    """Signals that come meanwhile change nothing."""
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    with pytest.raises(Stop) as stop, stoppable():
        child = context.Process(target=rest, args=(pids,), daemon=True)
        child.start()
        started = [pids.get(timeout=60)]
        join = type(child).join
        child.join = lambda seconds: signal.raise_signal(signal.SIGINT) or join(child, seconds)
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.args == (signal.SIGTERM,) and child.exitcode == -9
    wait_until_gone(started)


def test_a_loaders_process_ends_by_itself():
    """It has inherited the handler, and its parent continues."""
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    with stoppable():
        child = context.Process(target=rest, args=(pids,), daemon=True)
        child.start()
        os.kill(pids.get(timeout=60), signal.SIGTERM)
        child.join(60)
    assert child.exitcode == 143


PARENT = """
from ilm_plugins.frameworks.command import command
from ilm_plugins.frameworks.launch import launch
from launched import options
raise SystemExit(command(lambda: launch("launched", options("rest"), None)))
"""


@pytest.mark.parametrize(
    "number, status",
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.wide), (signal.SIGKILL, -9)],
)
def test_a_parent_takes_its_processes_with_it(root, tmp_path, number, status):
    """Those that it launched, and at a signal those that they started; nobody else has Ctrl-C."""
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    (tmp_path / "parent.py").write_text(PARENT)
    env = {**ALONE, "PYTHONPATH": os.pathsep.join([str(root / "tests"), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What is killed shall take its processes with it where SIGINT is ignored, too.
        preexec_fn=ignoring_interrupts if number == signal.SIGKILL else None,
    )
    child, grandchild = map(int, parent.stdout.readline().split())
    assert os.getsid(child) == child != os.getsid(parent.pid)
    parent.send_signal(number)
    assert parent.wait(30) == status
    wait_until_gone([child] if number == signal.SIGKILL else [child, grandchild])
    if number == signal.SIGKILL:
        os.kill(grandchild, signal.SIGKILL)
    else:
        assert parent.stderr.read().count("\n") == 1
    parent.communicate()


def ignoring_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def argv(root, datasets, tmp_path):
    """What gives the arguments of a run of either framework that ends in hours."""

    def of_detectron2(workers, *options):
        pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
        opts = ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "1"]
        opts += [*NO_TEST, "DATALOADER.NUM_WORKERS", str(workers)]
        return detectron2_command(*options, out=tmp_path / "out", opts=opts)

    def of_mmengine(workers, *options):
        pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
        config = write_mmengine_config(tmp_path / "fcn.py", datasets)
        opts = ["train_cfg.max_iters=100000", "default_hooks.checkpoint.interval=1"]
        opts += [
            "default_hooks.checkpoint.max_keep_ckpts=1",
            f"train_dataloader.num_workers={workers}",
        ]
        return mmengine_command(config, *options, out=tmp_path / "out", opts=opts)

    def of_pix2pix(workers, *options):
        """Of MMEngine's, too, but without mmseg, which takes seconds to import."""
        pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")
        pytest.importorskip("torchmetrics", reason="needs torchmetrics, of ilm_plugins[pix2pix]")
        opts = ["train_cfg.max_epochs=100000", f"train_dataloader.num_workers={workers}"]
        return pix2pix_command(root, datasets, *options, out=tmp_path / "out", opts=opts)

    return {"detectron2": of_detectron2, "mmengine": of_mmengine, "pix2pix": of_pix2pix}


@pytest.mark.parametrize(
    "framework, processes, workers, number, to, when",
    [
        pytest.param(
            *("pix2pix", 2, 0, signal.SIGINT, "group", "starting"), marks=pytest.mark.wide
        ),
        pytest.param(
            *("mmengine", 1, 1, signal.SIGTERM, "group", "training"), marks=pytest.mark.wide
        ),
        ("detectron2", 1, 1, signal.SIGINT, "group", "writing"),
        pytest.param(
            *("detectron2", 2, 0, signal.SIGTERM, "background", "training"), marks=pytest.mark.wide
        ),
        pytest.param(
            *("mmengine", 2, 1, signal.SIGINT, "parent", "training"), marks=pytest.mark.long
        ),
        pytest.param(
            *("detectron2", 2, 1, signal.SIGTERM, "parent", "training"), marks=pytest.mark.long
        ),
    ],
)
def test_a_signal_stops_a_run(argv, tmp_path, framework, processes, workers, number, to, when):
    out = tmp_path / "out"
    process = start(
        argv[framework](workers, "--num-processes", str(processes)),
        run=SLOWLY if when == "writing" else (sys.executable,),
        preexec_fn=ignoring_interrupts if to == "background" else None,
        start_new_session=True,
    )
    if when == "starting":
        wait_for(lambda: len(children(process.pid)) == processes, process)
        time.sleep(0.5)
    elif when == "training":
        wait_for((out / "last_checkpoint").exists, process)
    else:
        wait_for(lambda: list(out.glob(f"*{checkpoints.PARTIAL}")), process)
    started = children(process.pid)
    started += [pid for child in started for pid in children(child)]
    (os.killpg if to == "group" else os.kill)(process.pid, number)
    begun = time.monotonic()
    line = finish(process, seconds=60)
    assert time.monotonic() - begun < 20
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}. {RESUME}" in line
    wait_until_gone(started)
    if when == "training":
        last = (out / "last_checkpoint").read_text()
        if framework == "mmengine":  # its file may name the checkpoint that was just removed
            from ilm_plugins.frameworks.openmmlab.checkpoints import latest

            last = latest(out)
        assert checkpoints.read(out / last, unsafe=True)
    if when == "writing":
        assert not list(out.glob("*.pth*"))
