"""Run the tests and benchmarks of ``make gpu``, in ten minutes; write each result as it ends.

First the tests that need a GPU, while processes fill Triton's caches for each layer and map; then
the table of the layers, the host's time of a call, and ResNet-50's training step: eager, compiled,
as a graph. ``--rehearse`` runs all parts on the CPU, with tiny sizes, where there is no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from . import layers, report, steps

PYTHON = (sys.executable, "-m")
#: Seconds that one part may take.
LIMIT = 150


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/gpu"))
    parser.add_argument("--processes", type=int, default=max(2, (os.cpu_count() or 2) - 4))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    device = ["--device", "cpu" if args.rehearse else "cuda"]
    few = ["--layers", "ILMGN", "EN", "--shapes", "res5"] if args.rehearse else []
    with ThreadPoolExecutor(args.processes) as pool:
        if not args.rehearse:
            tests = pool.submit(
                part, args.output, "tests", "pytest", "-q", "-n", "4", "tests/ops/test_cuda.py"
            )
            maps = product(layers.BASELINES, layers.SHAPES)
            list(pool.map(lambda one: fill(args.output, *one), maps))
            tests.result()
    table = ["benchmarks", *device, "--parts", "layers", "--rounds", "2" if args.rehearse else "7"]
    part(args.output, "layers", *table, *few, "--output", str(args.output / "layers"))
    host = ["benchmarks.host", *device, "--rounds", "5"]
    part(args.output, "host", *host, "--output", str(args.output / "host.json"))
    size = ["--batch", "2", "--size", "32", "--norms", "BN", "EN"] if args.rehearse else []
    ways = ("eager",) if args.rehearse else steps.WAYS
    for way in ways:
        file = str(args.output / f"steps, {way}.json")
        # Compiling takes long: two norms tell which way is best.
        some = ["--norms", "GN", "BN", "ILMGN", "EN"] if way.startswith("compiled, ") else size
        part(args.output, way, "benchmarks.steps", way, *device, *some, "--output", file)
    collect(args.output)


def fill(output: Path, layer: str, shape: str) -> None:
    """Compile the kernels of a layer for a map, in all settings, into Triton's cache."""
    words = ["--device", "cuda", "--parts", "layers", "--rounds", "2", "--layers", layer]
    words += ["--shapes", shape, "--output", str(output / "caches" / f"{layer}, {shape}")]
    command = [*PYTHON, "benchmarks", *words]
    subprocess.run(command, capture_output=True, timeout=LIMIT, check=False)


def part(output: Path, name: str, *words: str) -> None:
    """Run a module with arguments; write what it prints, and print how long it took."""
    begin = time.monotonic()
    with (output / f"{name}.txt").open("w") as file:
        try:
            done = subprocess.run(
                [*PYTHON, *words], stdout=file, stderr=subprocess.STDOUT, timeout=LIMIT, check=False
            )
            status = f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            status = f"ended after {LIMIT} seconds"
    print(f"{name}: {status}, {time.monotonic() - begin:.0f} s", flush=True)


def collect(output: Path) -> None:
    """Write all results to gpu.json, as python -m benchmarks.report takes it."""
    results = {}
    if (measured := output / "layers" / "benchmark.json").exists():
        results = json.loads(measured.read_text())
    found = {way: output / f"steps, {way}.json" for way in steps.WAYS}
    results["steps"] = {
        way: json.loads(file.read_text())["norms"] for way, file in found.items() if file.exists()
    }
    (output / "gpu.json").write_text(report.to_json(results))


if __name__ == "__main__":
    main()
