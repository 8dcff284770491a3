"""What every process of a run gets from its launch."""

import os
import subprocess
import sys

import pytest

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
    ],
)
def test_a_cpu_training_reuses_its_freed_memory(launcher, num_gpus, environment, keeps):
    faults = printed("faults", launcher, num_gpus, environment)
    # A new tensor of 64 MiB has 16,384 pages, or 32 huge ones.
    assert (faults < 10) == keeps, faults


def test_the_number_of_threads_may_be_set():
    assert printed("threads", "none", 0, {"OMP_NUM_THREADS": "1"}) == 1


def printed(what, launcher, num_gpus, environment):
    """The number that a process prints; see :mod:`launched`."""
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name.upper()}
    paths = os.pathsep.join(["tests", *filter(None, [env.get("PYTHONPATH")])])
    env |= {"PYTHONPATH": paths, "RANK": "0"} | environment
    words = [sys.executable, "-c", PROGRAM, what, launcher, str(num_gpus)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])
