"""Tests and measurements of ``make gpu``, the most valuable first, each alone on the GPU.

First Triton's kernels are compiled, without the GPU, and models, as many at once as fit into its
memory. Then each training step, in each way, and each feature map has a process and a result file.
A part is ended after five minutes, or a third of ``--minutes``. OUTPUT/table.md has the results so
far. All takes some 15 minutes on an H200 with 16 cores. ``--rehearse`` runs tiny parts on the CPU.
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from . import needs

try:
    import torch

    from ilm_plugins.files import write_text
    from ilm_plugins.ops.engine.backends import backend_for, use_backend

    from . import layers, measure
    from .steps import AGAIN, STEP_BASELINES
except ModuleNotFoundError:
    needs.check_needs()  # ends here without torch or wrapt
    raise

#: Steps in the order of their value. BN is measured twice: it shows how far two processes differ.
STEPS = [
    *(("compiled", norm) for norm in ("EN", "BN", "ILMGN", "GN", "SN", "AN")),
    *(("compiled, reduce-overhead", norm) for norm in ("EN", "BN", "ILMGN", "SN")),
    *(("eager", norm) for norm in ("EN", "BN", "ILMGN", "GN", "SN", "AN", "EN, sync", "BN, again")),
    *(("graph", norm) for norm in ("EN", "BN", "ILMGN", "GN", "SN", "AN")),
    ("compiled", "BN, again"),
    *((way, norm) for way in ("eager", "graph") for norm in STEP_BASELINES if "0" in norm),
]
REHEARSED = [("compiled", "EN"), ("eager", "EN, sync"), ("eager", "EfficientNet-B0, EN, fused")]
#: Images of a step, the bytes that each takes with GroupNorm, the most, and a process beside them.
IMAGES, IMAGE_BYTES, PROCESS_BYTES = 128, 0.11 * 2**30, 2 * 2**30
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
    name: str
    command: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/gpu"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="leave out the rest")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, signal.default_int_handler)
    try:
        measure_all(args.output, 60 * args.minutes, args.rehearse)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {args.output} has the results so far")


def measure_all(output: Path, seconds: float, rehearse: bool) -> None:
    """Run what fits into a time; print how each part ends, the table, and what is left out."""
    begin, limit = time.monotonic(), min(300, seconds / 3)  # of a part
    without = needs.check_needs()
    about = machine(torch.device("cpu" if rehearse else "cuda"))
    output.mkdir(parents=True, exist_ok=True)
    for pattern in ("step, *.json", "layers, *.json", "loops over tiles.*", "table.md"):
        for file in output.glob(pattern):
            file.unlink()  # of an earlier run
    write_text(output / "machine.json", measure.to_json(about))
    print(f"{about['device']}: {about['images']} images a step, tables in {output / 'table.md'}")
    print("all takes some 15 minutes on an H200 with 16 cores", flush=True)
    images, compiled = about["images"], begin + seconds / 3
    run(kernels(about, rehearse), without, output, compiled, limit, os.cpu_count() or 1)
    if about["at once"] > 1 and not rehearse:
        run(models(images), without, output, compiled, limit, about["at once"])
    if "facades" not in without:
        write_pairs(output / "noise", 4 if rehearse else 200)
    late = run(parts(output, rehearse, images), without, output, begin + seconds, limit)
    for name in ("table.md", "loops over tiles.txt"):
        if (output / name).exists():
            print((output / name).read_text())
    if late:
        print(f"left out after {seconds / 60:g} minutes: {'; '.join(late)}")


def machine(device: torch.device) -> dict:
    """Return the device, the bandwidth of a copy, and sizes; SystemExit without a GPU."""
    if device.type == "cpu":
        sizes = {"images": 2, "at once": 2, "capability": 90, "multiprocessors": 132}
        return measure.machine(device) | sizes
    try:
        with use_backend("triton"):
            backend_for(torch.empty(1, 1, 2, dtype=torch.bfloat16, device=device), 1)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA, or no GPU
        sys.exit(f"error: {error}; --rehearse tries the parts on the CPU")
    x, y = (torch.ones(2**30, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = min(measure.replayed(partial(y.copy_, x), 10) for _ in range(3))
    del x, y
    torch.cuda.empty_cache()  # for the parts
    gpu = torch.cuda.get_device_properties(device)
    return {
        **measure.machine(device),
        **fitting(torch.cuda.mem_get_info(device)[0]),
        "capability": 10 * gpu.major + gpu.minor,
        "multiprocessors": gpu.multi_processor_count,
        "copy GB/s": 2 * 2**30 / seconds / 1e9,
    }


def fitting(free: int) -> dict[str, int]:
    """Return the images of a step that fits into free bytes, and how many such steps fit."""
    images = IMAGES
    while images > 1 and PROCESS_BYTES + images * IMAGE_BYTES > free:
        images //= 2
    at_once = int(free / (PROCESS_BYTES + images * IMAGE_BYTES))
    return {"images": images, "at once": max(1, min(at_once, (os.cpu_count() or 2) // 2))}


def kernels(about: dict, rehearse: bool) -> Iterator[Part]:
    """Yield the parts that compile kernels, without the GPU."""
    gpu = [about[key] for key in ("images", "capability", "multiprocessors")]
    norms = [norm for way, norm in STEPS if way == "eager" and norm[:2] not in ("BN", "GN")]
    names = ["res5"] if rehearse else [*norms, *layers.SHAPES]
    for name in names:
        kind = "layers" if name in layers.SHAPES else "step"
        yield Part(f"{kind}, {name}, kernels", call("ahead.compile_kernels", name, *gpu))


def models(images: int) -> Iterator[Part]:
    """Yield the parts that compile models, which run a step."""
    for way, norm in STEPS:
        if way.startswith("compiled") and not norm.endswith(AGAIN):
            command = call("steps.compile_model", way, norm, images)
            yield Part(f"step, {way}, {norm}, compilation", command)


def call(function: str, *arguments: object) -> tuple[str, ...]:
    """Return the command that calls "MODULE.NAME" of benchmarks with plain arguments."""
    module = function.partition(".")[0]
    return sys.executable, "-c", f"from benchmarks import {module}; {function}(*{arguments})"


def parts(output: Path, rehearse: bool, images: int = IMAGES) -> Iterator[Part]:
    """Yield the parts in the order of their value."""
    device, python = "cpu" if rehearse else "cuda", sys.executable

    def to_file(name: str, function: str, *arguments: object) -> Part:
        return Part(name, call(function, str(output / f"{name}.json"), device, *arguments))

    workers = 1 if rehearse else min(6, os.cpu_count() or 1)
    tests = ("-m", "pytest", "-v", "-n", str(workers), "tests/ops/test_cuda.py")
    yield Part("tests", (python, *tests))
    for way, norm in REHEARSED if rehearse else STEPS:
        yield to_file(f"step, {way}, {norm}", "steps.measure_step", way, norm, images)
    words = ("--device", device, "--rounds", "5", "--output", str(output / "host.json"))
    yield Part("host", (python, "-m", "benchmarks.host", *words))
    for shape in ["res5"] if rehearse else layers.SHAPES:
        yield to_file(f"layers, {shape}", "layers.measure_map", shape)
    if not rehearse:
        yield to_file("loops over tiles", "layers.measure_stages")
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    for tool in ("memcheck", "racecheck") if sanitizer else ():
        yield Part(tool, (sanitizer, "--tool", tool, python, "-c", PASSES, device))
    config = "shapes_ilmin_in" if rehearse else "facades_ilmin_in"
    train = (
        "-m",
        "reproduction.train_pix2pix_as_graph",
        f"configs/pix2pix/{config}.py",
        "--epochs",
        "2",
    )
    words = ("--device", device, "--data", str(output / "noise"), "--output", str(output))
    yield Part("facades, 400 steps on noise", (python, *train, *words))


def write_pairs(folder: Path, number: int) -> None:
    """Write pairs of noise to train on, and one to test, where the configs of pix2pix look."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (256, 512, 3), dtype=np.uint8)
    training = [f"{i:03}.jpg" for i in range(number)]
    names = [*training, f"{number}.jpg", "pairs/validation/0.jpg"]
    for name in (*names, *(f"pairs/training/{name}" for name in training)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def run(
    parts: Iterable[Part],
    without: set[str],
    output: Path,
    end: float,
    limit: float,
    at_once: int = 1,
) -> list[str]:
    """Run parts of all kinds but some, and print how each ends; return the names that are late."""
    waiting, running = [p for p in parts if p.name.partition(",")[0] not in without], {}
    try:
        while running or (waiting and time.monotonic() < end):
            if waiting and len(running) < at_once and time.monotonic() < end:
                part, begin = waiting.pop(0), time.monotonic()
                running[part.name] = start(part, output, at_once), begin, min(end, begin + limit)
                continue
            time.sleep(0.1)
            for name, (process, begin, until) in [*running.items()]:
                is_late = process.poll() is None and time.monotonic() >= until
                if is_late:
                    kill(process)
                if process.returncode is not None:
                    del running[name]
                    how = "ended at its limit" if is_late else f"exit status {process.returncode}"
                    print(f"{name}: {how}, {time.monotonic() - begin:.0f} s", flush=True)
                    write_table(output)
    finally:
        for process, *_ in running.values():
            kill(process)
    return [part.name for part in waiting]


def start(part: Part, output: Path, at_once: int) -> subprocess.Popen:
    """Start a part in a session of its own, so that its workers are killed with it."""
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])  # if not installed
    threads = max(1, (os.cpu_count() or 1) // at_once)
    added = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": path,
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
    }
    with (output / f"{part.name}.txt").open("w") as file:
        options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen(part.command, env={**os.environ, **added}, **options)


def kill(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_table(output: Path) -> None:
    """Write the results so far, if the table's modules are there."""
    if not any(map(needs.is_missing, needs.NEEDS["table"])):
        from . import report

        write_text(output / "table.md", report.everything(report.collect(output)) + "\n")


if __name__ == "__main__":
    main()
