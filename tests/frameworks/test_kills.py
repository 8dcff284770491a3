"""Runs that are killed at random moments, in the middle of writing a checkpoint among others."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from faults import SLOWLY, start, wait_for
from ilm_plugins import checkpoints
from ilm_plugins.cli import train_net
from ilm_plugins.frameworks.openmmlab.checkpoints import latest, use_safe_checkpoints
from runs import (
    NO_TEST,
    detectron2_command,
    mmengine_command,
    pix2pix_command,
    write_mmengine_config,
)

SAVED_OFTEN = "default_hooks.checkpoint.interval=1"


class Detectron2:
    def __init__(self, root, datasets, out):
        self.out = out

    def argv(self, *options, length):
        opts = ["SOLVER.MAX_ITER", str(length), "SOLVER.CHECKPOINT_PERIOD", "1", *NO_TEST]
        return detectron2_command(*options, out=self.out, opts=opts)

    def last(self):
        named = self.out / "last_checkpoint"
        return self.out / named.read_text() if named.exists() else None

    def reached(self, state):
        return state["iteration"] + 1


class MMEngine:
    def __init__(self, root, datasets, out):
        self.config, self.out = write_mmengine_config(out.parent / "fcn.py", datasets), out

    def argv(self, *options, length):
        # The outdated one is to go when the next is there, and no sooner.
        keep = "default_hooks.checkpoint.max_keep_ckpts=1"
        opts = [f"train_cfg.max_iters={length}", SAVED_OFTEN, keep]
        return mmengine_command(self.config, *options, out=self.out, opts=opts)

    def last(self):
        found = latest(self.out)
        return found and Path(found)

    def reached(self, state):
        return state["meta"]["iter"]


class Pix2Pix(MMEngine):
    def __init__(self, root, datasets, out):
        self.root, self.datasets, self.out = root, datasets, out

    def argv(self, *options, length):
        opts = [f"train_cfg.max_epochs={-(-length // 8)}", "train_cfg.val_interval=1000"]
        opts += [SAVED_OFTEN, "default_hooks.checkpoint.by_epoch=False"]
        return pix2pix_command(self.root, self.datasets, *options, out=self.out, opts=opts)


@pytest.mark.long
@pytest.mark.parametrize("kind", [Detectron2, MMEngine, Pix2Pix])
def test_no_kill_loses_the_last_checkpoint(root, datasets, tmp_path, kind):
    """Eight kills each: four at any moment, four within the write of a checkpoint.

    That a kill has hit a write is told by the file that it leaves, shorter than a whole one. After
    each, the last checkpoint can be read and is not older than before.
    """
    use_safe_checkpoints()
    run = kind(root, datasets, tmp_path / "out")
    rng, reached, in_writes = random.Random(0), 0, 0
    for attempt in range(8):
        process = start(run.argv("--resume", length=100_000), run=SLOWLY, start_new_session=True)
        begun = time.time()
        if attempt % 2:
            # Not one that an earlier kill has left, which goes when the run begins.
            wait_for(partial(written, run.out, since=begun), process)
            time.sleep(rng.uniform(0, 0.5))
        elif attempt:
            time.sleep(rng.uniform(0, 30))
        else:
            wait_for(run.last, process)
            time.sleep(rng.uniform(0, 3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        last = run.last()
        now = run.reached(checkpoints.read(last))
        assert now >= reached
        reached = now
        whole = last.stat().st_size
        in_writes += any(p.stat().st_size < whole for p in written(run.out, since=begun))
    assert in_writes >= 4
    length = run.reached(checkpoints.read(run.last())) + 1
    assert train_net.main(run.argv("--resume", length=length)) == 0
    assert run.reached(checkpoints.read(run.last())) >= length
    assert not written(run.out)


def written(folder, since=0):
    """The files that are being written, or were when a run was killed."""
    found = folder.glob(f"*.pth.*{checkpoints.PARTIAL}")
    return [p for p in found if p.stat().st_mtime >= since and p.stat().st_size]
