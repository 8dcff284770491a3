"""Trainings that are killed at random moments and while a checkpoint is written."""

import random
import time

import pytest

from helpers.trainings import NO_TEST, SHAPES, SMALL, mmengine_command, write_mmengine_config
from ilm_plugins.checkpoints import read
from ilm_plugins.files import PARTIAL


def command_of(framework, datasets, out):
    """The arguments of a training that saves after each iteration, and keeps one checkpoint."""
    if framework == "detectron2":
        opts = ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "1", *NO_TEST]
        words = ["train", "--config-file", str(SHAPES), "--num-gpus", "0", "--resume"]
        return [*words, "OUTPUT_DIR", str(out), *SMALL, *opts]
    config = write_mmengine_config(out.parent / "fcn.py", datasets)
    hook = "default_hooks.checkpoint"
    opts = ["train_cfg.max_iters=100000", f"{hook}.interval=1", f"{hook}.max_keep_ckpts=1"]
    return mmengine_command(config, "--resume", out=out, opts=opts)


def reached(framework, out):
    """The iterations at the last checkpoint, which must be whole; None without one."""
    if framework == "detectron2":
        named = out / "last_checkpoint"
        return read(out / named.read_text())["iteration"] + 1 if named.exists() else None
    from ilm_plugins.frameworks.openmmlab.checkpoints import latest

    return read(latest(out))["meta"]["iter"] if latest(out) else None


@pytest.mark.wide
@pytest.mark.parametrize("framework", ["detectron2", "mmseg"])
def test_no_kill_loses_the_last_checkpoint(datasets, launcher, tmp_path, framework):
    pytest.importorskip(framework, reason=f"needs {framework}")
    out, before, rng = tmp_path / "out", 0, random.Random(0)
    words, log = command_of(framework, datasets, out), tmp_path / "log.txt"
    for attempt in range(24):
        if attempt >= 8 and before > 3:  # a busy machine needs more attempts to get on
            break
        process, begun, end = launcher.start(words, log), time.time(), time.monotonic() + 180
        while not any(started(path) > begun for path in out.glob(f"*.pth.*{PARTIAL}")):
            assert not launcher.has_ended(), log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(rng.uniform(0, 2) if attempt % 2 else 0)
        launcher.kill(process)
        now = reached(framework, out)
        assert (now or 0) >= before, f"from {before} to {now} iterations"
        assert now or attempt == 0, f"from {before} to {now} iterations"
        before = now or 0
    assert before > 3
    assert len([*out.glob(f"*{PARTIAL}")]) <= 1, "those of earlier kills are removed"


def started(path):
    try:
        return path.stat().st_mtime if path.stat().st_size else 0
    except FileNotFoundError:
        return 0
