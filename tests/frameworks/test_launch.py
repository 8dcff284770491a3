"""What every process of a run gets from its launch."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from launched import options

import fresh
from ilm_plugins.errors import ERROR_FILE
from ilm_plugins.frameworks import launch

PROGRAM = """
import sys
from ilm_plugins.frameworks.launch import launch
from launched import options

args = options(sys.argv[1])
args.launcher, args.num_gpus = sys.argv[2], int(sys.argv[3])
launch("launched", args, None)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"),
    reason="only glibc's allocator is configured",
)
@pytest.mark.parametrize(
    "launcher, num_gpus, environment, keeps",
    [
        ("pytorch", 0, {}, True),
        ("none", 0, {}, True),
        ("pytorch", 1, {}, False),
        ("pytorch", 0, {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ("pytorch", 0, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_a_cpu_training_reuses_its_freed_memory(launcher, num_gpus, environment, keeps):
    faults = printed("faults", launcher, num_gpus, environment)
    # A new tensor of 64 MiB has 16,384 pages, or 32 huge ones.
    assert (faults < 10) == keeps, faults


@pytest.mark.parametrize("of_user, given", [(None, [4]), ("3", [])])
def test_processes_share_the_cores_unless_threads_are_set(monkeypatch, of_user, given):
    found = []
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(sys, "argv", ["", json.dumps(["launched", vars(options("threads", 2))])])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", of_user or "")
    if of_user is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    launch.worker()
    assert found == given


def test_a_process_ends_at_once_if_its_error_cannot_be_written(monkeypatch, tmp_path):
    left = []
    monkeypatch.setattr(sys, "argv", ["", json.dumps(["launched", vars(options("defect"))])])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "missing" / "error.json"))
    monkeypatch.setattr(launch.os, "_exit", left.append)
    launch.worker()
    assert left == [1]


def printed(what, launcher, num_gpus, environment):
    """The number that a process prints; see :mod:`launched`."""
    of_session = ("MALLOC_", "GLIBC_TUNABLES", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(of_session)}
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, *filter(None, [env.get("PYTHONPATH")])])
    env |= {"PYTHONPATH": paths, "RANK": "0"} | environment
    words = [sys.executable, "-c", PROGRAM, what, launcher, str(num_gpus)]
    done = fresh.run(words, env=env, check=True)
    return int(done.stdout.split()[-1])
