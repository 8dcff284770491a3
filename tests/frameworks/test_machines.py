"""Two machines, here two commands on one, that train together and lose one of them."""

import time

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from faults import finish, start, wait_for
from ilm_plugins.cli import train_net
from runs import NO_TEST, detectron2_command, mmengine_command, write_mmengine_config
from workers import free_port


@pytest.fixture(params=["detectron2", "mmengine"])
def run_of(request, datasets, tmp_path):
    """The arguments of a run, for a number of iterations, with a checkpoint every two."""
    config = write_mmengine_config(tmp_path / "fcn.py", datasets)

    def run(length, out, *options):
        if request.param == "mmengine":
            opts = [f"train_cfg.max_iters={length}"]
            return mmengine_command(config, *options, out=out, opts=opts)
        opts = ["SOLVER.MAX_ITER", str(length), "SOLVER.CHECKPOINT_PERIOD", "2", *NO_TEST]
        return detectron2_command(*options, out=out, opts=opts)

    return run


@pytest.fixture
def machines(run_of, tmp_path):
    """What starts both, for a number of iterations, each with its output folder."""
    url = f"tcp://127.0.0.1:{free_port()}"

    def machine(rank, length, out, *more):
        options = ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url, *more]
        return start(run_of(length, out, *options))

    def machines(length, folders=(tmp_path, tmp_path), *more):
        return [machine(rank, length, out, *more) for rank, out in enumerate(folders)]

    return machines


@pytest.mark.long
def test_two_machines_train_together(machines, tmp_path):
    for process in machines(length=2):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    assert (tmp_path / "last_checkpoint").exists()


@pytest.mark.wide
def test_a_machine_without_the_checkpoint_does_not_start_anew(run_of, machines, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    assert train_net.main(run_of(2, folders[0])) == 0
    for process in machines(4, folders, "--resume"):
        line = finish(process)
        assert "rank 0 has " in line and "but rank 1 none; share the folder among" in line
        assert process.returncode == 2


@pytest.mark.long
def test_a_machine_that_is_gone_ends_the_other(machines, tmp_path):
    first, second = machines(length=100_000)
    wait_for((tmp_path / "last_checkpoint").exists, first)
    second.kill()
    killed = time.monotonic()
    line = finish(first, seconds=60)
    assert time.monotonic() - killed < 30 and first.returncode == 1
    assert "another process ended, so this one stops" in line
    assert "--resume continues from the last checkpoint" in line
    second.communicate()
