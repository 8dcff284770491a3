"""Tests and measurements of ``make gpu``: nine minutes of a GPU, the most important parts first.

Each norm and way of a training step is a process with a result file of its own, and so is each
feature map. They compile at the same time, and time one after another, under a lock. A part that
reaches its limit is ended; what it has written stays. ``python -m benchmarks.report FOLDER`` reads
the folder. ``--rehearse`` runs the parts on the CPU, in tiny sizes and without graphs.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from . import layers, measure, report

#: Seconds after which nothing starts any more, and what runs is ended.
END = 540
#: Steps in the order of their value. BN is measured twice: it shows how far two processes differ.
STEPS = [
    *(("compiled", norm) for norm in ("EN", "BN", "ILMGN", "GN", "SN", "AN")),
    *(("compiled, reduce-overhead", norm) for norm in ("EN", "BN", "ILMGN", "SN")),
    *(("eager", norm) for norm in ("EN", "BN", "ILMGN", "GN", "SN", "AN", "EN, sync", "BN, again")),
    *(("graph", norm) for norm in ("EN", "BN", "ILMGN", "GN", "SN", "AN")),
    ("compiled", "BN, again"),
    *((way, norm) for way in ("eager", "graph") for norm in report.STEP_BASELINES if "0" in norm),
]
REHEARSED = [("compiled", "EN"), ("eager", "EN, sync"), ("eager", "EfficientNet-B0, EN, fused")]
#: Forward and backward passes for compute-sanitizer, on a device.
PASSES = """
import sys, torch, ilm_plugins
for shape in ((20, 64, 9, 9), (2, 256, 50, 76)):
    for name in ("EN", "ILMGN"):
        layer = ilm_plugins.NORMS[name](shape[1]).to(sys.argv[1])
        x = torch.randn(shape, device=sys.argv[1], requires_grad=True)
        layer(x).sum().backward()
"""


class Part(NamedTuple):
    """A command, the seconds that it may run, and whether it runs under the lock as a whole."""

    name: str
    command: tuple[str, ...]
    limit: int
    alone: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/gpu"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    args = parser.parse_args()
    scale = 10 if args.rehearse else 1  # the CPU may be busy with something else
    end, device = time.monotonic() + scale * END, torch.device("cpu" if args.rehearse else "cuda")
    args.output.mkdir(parents=True, exist_ok=True)
    for file in args.output.glob("*.json"):
        file.unlink()  # of an earlier run
    (args.output / "machine.json").write_text(measure.to_json(machine(device)))
    # Those that wait for the lock need no core; the tests have six workers.
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 2) - 4)) as pool:
        begun = [
            pool.submit(run, args.output, end, part._replace(limit=scale * part.limit))
            for part in parts(args.output, args.rehearse)
        ]
    print(report.everything(report.collect(args.output)))
    for one in begun:
        one.result()  # raises an exception of the part's thread


def machine(device: torch.device) -> dict:
    """Return what :func:`measure.machine` does, and the bandwidth of a copy."""
    x = torch.ones(2**30 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    y, clock = torch.empty_like(x), measure.clock(device)
    seconds = min(clock(lambda: y.copy_(x), 10) for _ in range(3))
    return measure.machine(device) | {"copy GB/s": 2 * x.nbytes / seconds / 1e9}


def parts(output: Path, rehearse: bool) -> Iterator[Part]:
    """Yield the parts in the order of their value."""
    device = "cpu" if rehearse else "cuda"

    def module(name: str, *words: str, limit: int, alone: bool = True) -> Part:
        file = ("--device", device, "--output", str(output / f"{name}.json"))
        return Part(name, (sys.executable, "-m", *words, *file), limit, alone)

    workers = "1" if rehearse else "6"
    pytest = (sys.executable, "-m", "pytest", "-v", "-n", workers, "tests/ops/test_cuda.py")
    yield Part("tests", pytest, 170)
    for way, norm in REHEARSED if rehearse else STEPS:
        yield module(f"step, {way}, {norm}", "benchmarks.steps", way, norm, limit=300, alone=False)
    for shape in ("res5",) if rehearse else layers.SHAPES:
        yield module(f"layers, {shape}", "benchmarks.layers", shape, limit=300, alone=False)
    yield module("host", "benchmarks.host", "--rounds", "2" if rehearse else "5", limit=60)
    passes = (sys.executable, "-c", PASSES, device)
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    for tool in ("memcheck", "racecheck"):
        if sanitizer:
            yield Part(tool, (sanitizer, "--tool", tool, *passes), 60)
        elif rehearse:
            yield Part(f"{tool}, without it", passes, 60)
    config = "shapes_ilmin_in" if rehearse else "facades_ilmin_in"
    write_pairs(output / "noise", 4 if rehearse else 200)
    tool = ("tools/train_pix2pix_as_graph.py", f"configs/pix2pix/{config}.py", "--epochs", "2")
    words = ("--device", device, "--data", str(output / "noise"), "--output", str(output))
    yield Part("facades, 400 steps on noise", (sys.executable, *tool, *words), 90)


def write_pairs(folder: Path, number: int) -> None:
    """Write pairs of noise to train on, and one to test, where the configs of pix2pix look."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    training = [f"{i:03}.jpg" for i in range(number)]
    names = [*training, f"{number}.jpg", "pairs/validation/0.jpg"]
    for name in (*names, *(f"pairs/training/{name}" for name in training)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def run(output: Path, end: float, part: Part) -> None:
    """Run a part, write what it prints to NAME.txt, and print how long it took."""
    lock = FileLock(output / "lock") if part.alone else nullcontext()
    with lock, (output / f"{part.name}.txt").open("w") as file:
        begin = time.monotonic()
        if begin >= end:
            print(f"{part.name}: left out", flush=True)
            return
        # In a session of its own, so that its workers end with it.
        options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])  # if not installed
        added = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
        process = subprocess.Popen(part.command, env={**os.environ, **added}, **options)
        try:
            status = f"exit status {process.wait(min(part.limit, end - begin))}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = "ended at its limit"
            process.wait()
        print(f"{part.name}: {status}, {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
