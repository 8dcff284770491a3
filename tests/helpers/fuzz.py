"""Compare the compiled kernels with float64 on random layers and maps, each by a seed.

::

    export PYTHONPATH=.:tests
    python -m helpers.fuzz --seconds 60
    python -m helpers.fuzz --seed 1234 --cases 1        # one case again
    python -m helpers.fuzz --sanitize --seconds 600     # what make sanitize runs

With ``--sanitize``, the kernels are compiled into a temporary folder, with AddressSanitizer,
UndefinedBehaviorSanitizer and red zones around their arrays.
"""

import argparse
import contextlib
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from equations import cases
from ilm_plugins import NORMS
from ilm_plugins.ops import cpu

SETS = ["default", "avx2", "avx512"]
ROOT = Path(__file__).parents[2]
DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
CHANNELS = 1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 30, 33, 48, 64, 66, 96
#: Sizes around which the kernels change their way: vectors, short blocks, parts of a row.
LENGTHS = 1, 2, 7, 15, 16, 17, 31, 33, 49, 64, 129, 511, 512, 513, 1025, 4100, 8191, 8193, 16391
#: Of this processor, from the oldest on.
INSTRUCTIONS = SETS[: SETS.index(cpu.instruction_set()) + 1]
MOST = 400_000  # values of a map
#: Tests allow 1024 roundings. One case in thousands has a sum of many more terms.
ROUNDINGS = 4096
#: The gradient by SSN's logits is a projection of a larger one, and can be 0.
ROUNDINGS_OF_SSN = 2**16


def shape_of(r: random.Random) -> list[int]:
    """Draw (N, C, *) of up to three spatial dimensions."""
    channels = r.choice(CHANNELS)
    spatial = [r.choice(LENGTHS)]
    if r.random() < 0.5:
        spatial = [r.randint(1, 20) for _ in range(r.randint(0, 3))]
    most = max(1, MOST // (channels * math.prod(spatial)))
    instances = min(most, r.choice([1, 2, 3, 4, 5, 9, 17, 33]))
    if math.prod(spatial) == 1:
        instances = max(2, instances)  # BN of a single value is 0, as is every gradient through it.
    return [instances, channels, *spatial]


def fuse(r: random.Random, layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor):
    """Let a layer apply an activation; returns dy without jumps."""
    layer.fused_activation = r.choice(list(cases.FUSED))
    return cases.without_jumps(layer, x, dy)


def layer_of(r: random.Random, name: str, channels: int, dtype: torch.dtype) -> torch.nn.Module:
    make = partial(NORMS[name], channels, **cases.drawn_options(r, name, channels))
    layer = cases.randomized(make, dtype, seed=r.randrange(1000)).train(r.random() < 0.6)
    if name == "SSN":
        layer.radius.fill_(r.random())
        layer.mean_weight.detach().mul_(r.choice([0, 0.1, 1]))
    return layer


def check(seed: int) -> str:
    """Compare one case; returns its description."""
    r = random.Random(seed)
    name, dtype, shape = r.choice(list(NORMS)), r.choice(DTYPES), shape_of(r)
    layer = layer_of(r, name, shape[1], torch.promote_types(dtype, torch.float32))
    if math.prod(shape[2:]) == 1:
        layer.eps = 1.0  # The rounding errors of a single value are divided by the root of eps.
    lay_out = r.choice([torch.Tensor.contiguous, cases.channels_last])
    instructions, threads = r.choice(INSTRUCTIONS), r.choice([1, 2, 3])
    description = f"seed {seed}: {layer} of {shape}, {dtype}, {instructions}, {threads} threads"
    x, dy = (lay_out(cases.inputs(*shape, dtype=dtype, seed=r.randrange(1000))) for _ in range(2))
    # Torch computes single values and variants, with activations in x's own precision.
    if math.prod(shape[2:]) > 1 and layer.describe() is not None and r.random() < 0.4:
        dy = fuse(r, layer, x, dy)
        description += f", {layer.fused_activation}"
    cpu.instruction_set = lambda: instructions
    torch.set_num_threads(threads)
    try:
        roundings = ROUNDINGS_OF_SSN if name == "SSN" else ROUNDINGS
        cases.assert_exact(layer, x, dy, "cpu", roundings)
    except Exception as error:
        raise AssertionError(f"{description}: {error}") from error
    return description


def run(first: int, count: int, seconds: float) -> None:
    """Check cases of consecutive seeds, until one of the limits is reached."""
    end, seed = time.monotonic() + seconds, first
    while seed < first + count and time.monotonic() < end:
        check(seed)
        seed += 1
    print(f"{seed - first} cases, seeds {first} to {seed - 1}")


# ---- sanitizers

COMMAND = sys.executable, "-m", "helpers.fuzz"
FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"


@contextlib.contextmanager
def sanitized(flags: str = FLAGS):
    """Compile the kernels with sanitizers; yields the library and a process's environment."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "setup.py", "-q", "build_ext"]
        build += [f"--build-lib={folder}", f"--build-temp={folder}"]
        env = {**os.environ, "ILM_PLUGINS_REQUIRE_C": "1", "ILM_PLUGINS_CFLAGS": flags}
        subprocess.run(build, cwd=ROOT, env={**env, "ILM_PLUGINS_CHECKED": "1"}, check=True)
        library = Path(folder, cpu.library.LIBRARY.relative_to(ROOT))
        compiler = os.environ.get("CXX", "g++")
        runtimes = [
            subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
            for name in ("libasan.so", "libubsan.so")
        ]
        # Python itself leaks, and has allocated before the runtime starts.
        options = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
        yield library, {**os.environ, **options, "PYTHONPATH": os.pathsep.join(sys.path)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--library", type=Path, help="another library than the installed one")
    parser.add_argument("--instructions", choices=SETS, help="the only set; default: all")
    parser.add_argument("--sanitize", action="store_true")
    args = parser.parse_args()
    if args.sanitize:
        limits = f"--seed={args.seed}", f"--cases={args.cases}", f"--seconds={args.seconds}"
        with sanitized() as (library, env):
            command = *COMMAND, *limits, f"--library={library}"
            sys.exit(subprocess.run(command, env=env).returncode)
    if args.library:
        cpu.library.LIBRARY = args.library
    if args.instructions:
        INSTRUCTIONS[:] = [args.instructions]
    run(args.seed, args.cases, args.seconds)


if __name__ == "__main__":
    main()
