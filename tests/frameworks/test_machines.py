"""Two machines, here two commands on one, that train together and lose one of them."""

import time

import pytest

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")

from faults import finish, start, wait_for
from runs import NO_TEST, detectron2_command, mmengine_command, write_mmengine_config
from workers import free_port


@pytest.fixture(params=["detectron2", "mmengine"])
def machines(request, datasets, tmp_path):
    """What starts both, for a number of iterations, with a checkpoint every two."""
    config = write_mmengine_config(tmp_path / "fcn.py", datasets)
    url = f"tcp://127.0.0.1:{free_port()}"

    def machine(rank, length):
        options = ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url]
        if request.param == "mmengine":
            opts = [f"train_cfg.max_iters={length}"]
            return start(mmengine_command(config, *options, out=tmp_path, opts=opts))
        opts = ["SOLVER.MAX_ITER", str(length), "SOLVER.CHECKPOINT_PERIOD", "2", *NO_TEST]
        return start(detectron2_command(*options, out=tmp_path, opts=opts))

    return lambda length: [machine(rank, length) for rank in (0, 1)]


@pytest.mark.long
def test_two_machines_train_together(machines, tmp_path):
    for process in machines(length=2):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    assert (tmp_path / "last_checkpoint").exists()


@pytest.mark.long
def test_a_machine_that_is_gone_ends_the_other(machines, tmp_path):
    first, second = machines(length=100_000)
    wait_for((tmp_path / "last_checkpoint").exists, first)
    second.kill()
    killed = time.monotonic()
    line = finish(first, seconds=60)
    assert time.monotonic() - killed < 30 and first.returncode == 1
    assert "another process is gone, and this one ends with it" in line
    assert "--resume goes on from the last checkpoint" in line
    second.communicate()
