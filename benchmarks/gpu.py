"""All that a machine with a GPU can tell, by one command and without a network: ``make gpu``.

Tests that need a GPU, the benchmark and the papers' trainings run as steps, each as a process of
its own. When a step ends, its result is a line of OUTPUT/record.jsonl, and what it printed is in
OUTPUT/logs. After a stop at any moment, the same command continues with the steps not yet done.

The packages come from BUNDLE/wheels, and the images from BUNDLE/data, which ``make bundle`` writes;
either may be missing. Compiled packages, such as torch, are this Python's own. This module itself
needs nothing but Python.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from . import report

ROOT = Path(__file__).parents[1]
#: Compiled packages that must be there: name in an import -> name for pip.
COMPILED = {
    **{name: name for name in ("torch", "torchvision", "triton", "numpy", "matplotlib")},
    **{"cv2": "opencv-python-headless", "yaml": "PyYAML", "PIL": "pillow"},
}
CUDA = "tests/ops/test_cuda.py"
#: Name -> arguments of pytest, for tests that need a GPU, shortest first.
TESTS = {
    "the host never waits": (CUDA, "-k", "host_never_waits"),
    "CUDA graphs": (CUDA, "-k", "cuda_graphs"),
    "CPU and GPU agree": ("tests/layers/test_neighbours.py", "-k", "cpu_gpu_parity"),
    "backends agree": (CUDA, "-k", "backends_agree"),
}
#: Slow on a GPU, where Triton compiles a kernel for each shape; the interpreter also runs them.
MORE_TESTS = {
    "kernels": ("tests/ops/test_triton_kernels.py",),
    "properties": ("tests/ops/test_triton_properties.py",),
}
#: Tools of compute-sanitizer, and the tests that run under them.
SANITIZERS = ("memcheck", "racecheck")
SANITIZED = (CUDA, "-k", "backends_agree and triton and float32")
#: The maps of :data:`.layers.SHAPES`, which need torch; the box head's comes first.
MAPS = ("box head", "FPN", "res2", "res3", "res4", "res5", "DeepLab head", "pix2pix")
#: Name -> folder of the images, table, how its cells begin, the cell that is rehearsed, options.
TRAININGS = {
    "ResNet-20": ("cifar10_jpeg", "en-5", "ResNet20/", "ResNet20/EN", "--augment-batches"),
    "ResNet-56": ("cifar10_jpeg", "en-5", "ResNet56/", "ResNet56/EN", "--augment-batches"),
    "Facades": ("facades", "ilm-6", "I", "ILM+IN / IN"),
    "ResNet-101": ("cifar10_jpeg", "ilm-4", "ILM+GN", "ILM+GN, batch 2", "--augment-batches"),
}
#: Without that for TensorBoard, which needs a package of this name.
BACKENDS = "visualizer.vis_backends=[{'type': 'LocalVisBackend'}]"
#: Runs at once on one GPU; one of a small model fills but a part of it.
JOBS = 3
#: Minutes of any step but a training.
LIMIT = 10
#: Minutes for a training to stop by itself before it is killed.
MARGIN = 0.5
#: Lines of a step's output in its record.
LINES = 20
#: pytest's exit status if all modules were skipped.
NO_TESTS = 5


class Step(NamedTuple):
    """A part of the sequence.

    Attributes:
        name: unique, and the name of its log.
        command: "{minutes}" in it stands for the minutes that are left.
        needs: a folder, or a program on PATH; the step is left out if it is missing.
        result: JSON file that the command writes, which becomes a part of the record.
    """

    name: str
    command: tuple[str, ...]
    needs: str | Path | None = None
    result: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Perform the steps of a command line; return 0, or 1 if a step failed.

    Steps that the record has as done are skipped. Writes OUTPUT/record.jsonl, and the benchmark's
    results to OUTPUT/benchmark.json.

    Raises:
        SystemExit: the command line is invalid; a package or the GPU is missing; SIGTERM.
    """
    args = parse(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    (args.output / "logs").mkdir(parents=True, exist_ok=True)
    environment = prepare(args)
    record, deadline, failed = args.output / "record.jsonl", time.monotonic() + 60 * args.minutes, 0
    done = {entry["step"] for entry in read(record) if entry["status"] == "done"}
    for step in steps(args):
        if step.name in done or not re.search(args.only, step.name):
            continue
        if time.monotonic() >= deadline:
            log(f"{args.minutes:g} minutes are over; the same command continues")
            break
        entry = perform(step, args.output / "logs", environment, deadline)
        add(record, entry)
        failed |= entry["status"] == "failed"
        took = f"{entry['status']}, {entry['seconds']:.0f} s"
        log(": ".join((step.name, took, *entry["last"][-1:])))
    parts = {entry["step"]: entry["result"] for entry in read(record) if "result" in entry}
    if parts:
        results = report.joined(list(parts.values()))
        (args.output / "benchmark.json").write_text(report.to_json(results))
        log(f"wrote {args.output / 'benchmark.json'}; see docs/gpu.md for what to do with it")
    return int(failed)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line; default: ``sys.argv[1:]``. Paths become absolute.

    A rehearsal's output is a folder of its own in OUTPUT.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of `make bundle`")
    parser.add_argument("--output", type=Path, default=Path("output/gpu"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="minutes to run for")
    parser.add_argument("--only", default="", metavar="REGEX", help="steps whose names match")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU: interpreted kernels, tiny models"
    )
    args = parser.parse_args(argv)
    args.bundle, args.output = args.bundle.absolute(), args.output.absolute()
    if args.rehearse:  # its steps and results are not a GPU's
        args.output /= "rehearsal"
    return args


def prepare(args: argparse.Namespace) -> dict[str, str]:
    """Install the bundle to OUTPUT/packages, unless it is there; return the steps' environment.

    The folder comes first on PYTHONPATH. A new virtual environment is not used: if this Python is
    itself in one, the new one would not see its packages.

    Raises:
        SystemExit: the bundle, a compiled package or the GPU is missing; pip failed.
    """
    missing = [name for word, name in COMPILED.items() if not importlib.util.find_spec(word)]
    if missing:
        sys.exit(
            f"error: {sys.executable} lacks {', '.join(missing)}, which are compiled; "
            "give a Python that has them, PYTHON=..."
        )
    if not args.bundle.is_dir():
        sys.exit(f"error: {args.bundle}: no such folder; write it by: make bundle")
    packages, wheels = args.output / "packages", sorted(args.bundle.glob("wheels/*.whl"))
    if wheels and not packages.is_dir():
        new = args.output / "packages.new"
        shutil.rmtree(new, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target"]
        done = subprocess.run([*command, new, *wheels], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: pip could not install {args.bundle / 'wheels'}: {done.stderr[-500:]}")
        new.rename(packages)
    paths = [str(packages), str(ROOT), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if args.rehearse:
        return {**environment, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], env=environment).returncode:
        sys.exit("error: torch sees no GPU here; --rehearse tries the sequence without one")
    return environment


def steps(args: argparse.Namespace) -> list[Step]:
    """List all steps, in order: the machine, tests, benchmark, trainings."""
    python, tiny = sys.executable, args.rehearse
    few = ("-m", "not wide and not long") if tiny else ("-m", "not long")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *few)
    found = [Step("machine", (python, "-m", "ilm_plugins"))]
    found += [Step(f"tests: {name}", (*pytest, *words)) for name, words in TESTS.items()]
    for tool in SANITIZERS:
        # In blocks of their own, tensors have neighbours that are not theirs.
        command = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool)
        command += ("--error-exitcode", "1", *pytest, *SANITIZED)
        found.append(Step(f"tests: {tool}", command, "compute-sanitizer"))

    def benchmark(name: str, *words: str, prefix: tuple[str, ...] = ()) -> None:
        folder = args.output / "benchmark" / name.replace(" ", "-")
        command = (*prefix, python, "-m", "benchmarks", "--output", str(folder), "--parts", *words)
        found.append(Step(f"benchmark: {name}", command, None, folder / "benchmark.json"))

    small = ("--tiny", "--rounds", "2") if tiny else ()
    one = ("--settings", "float32") if tiny else ()
    kernels = ("env", "ILM_PLUGINS_BACKEND=triton")  # without them, the step fails
    for name in MAPS[:1] if tiny else MAPS:
        benchmark(name, "layers", "--shapes", name, *one, *small, prefix=kernels)
    if not tiny:  # compiling for the CPU would take minutes
        benchmark("compiled", "compiled")
    benchmark("models", "models", *small, prefix=() if tiny else kernels)
    chosen = ("-k", "box_head") if tiny else ()
    # Each worker compiles its tests' kernels on a core of its own.
    workers = ("-n", "8") if importlib.util.find_spec("xdist") and not tiny else ()
    for name, words in MORE_TESTS.items():
        found.append(Step(f"tests: {name}", (*pytest, *workers, *words, *chosen)))
    for name, (images, table, cells, rehearsed, *options) in TRAININGS.items():
        data = args.bundle / "data" / images
        words = (
            (rehearsed, "--miniature", "--num-gpus", "0") if tiny else (cells, "--num-gpus", "1")
        )
        command = (python, "-m", "ilm_plugins", "reproduce", "run", table, *words, BACKENDS)
        command += ("--jobs", str(JOBS), "--minutes", "{minutes}", "--data", str(data))
        command += ("--work-dir", str(args.output / "reproduce"), *options)
        found.append(Step(f"training: {name}", command, data))
    return found


def perform(step: Step, logs: Path, environment: dict[str, str], deadline: float) -> dict:
    """Perform a step and return its entry of the record.

    Args:
        step: the step.
        logs: folder of logs, which are appended to.
        environment: of its process.
        deadline: when all steps must end, on the clock of ``time.monotonic``.

    Returns:
        A dict of "step"; "status": "done", "failed", "stopped" at the deadline, or "missing" if a
        program or folder that it needs is absent, or pytest ran no test; "exit", the exit status,
        negative after a signal, for example when LIMIT ended it; "seconds"; "last", the last lines
        that it printed; and its "result", if it is done.
    """
    entry = {"step": step.name, "status": "missing", "exit": None, "seconds": 0.0}
    if step.needs and not (shutil.which(step.needs) or Path(step.needs).is_dir()):
        return {**entry, "last": [f"needs {step.needs}"]}
    begun = time.monotonic()
    left = (deadline - begun) / 60
    trains = "{minutes}" in step.command
    limit = left if trains else min(LIMIT, left)
    minutes = str(max(0.0, left - MARGIN))
    command = [minutes if word == "{minutes}" else word for word in step.command]
    path = logs / f"{re.sub(r'[^0-9A-Za-z]+', '-', step.name)}.log"
    with path.open("a+b") as file:
        start = file.tell()
        status = run(command, environment, file, None if limit == float("inf") else 60 * limit)
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    seconds = time.monotonic() - begun
    if status == 0 and not (trains and seconds > 60 * (left - MARGIN)):
        entry["status"] = "done"
    elif status == NO_TESTS and "pytest" in command:
        entry["status"] = "missing"
    else:
        stopped = seconds >= 60 * (left - MARGIN if trains else left)
        entry["status"] = "stopped" if stopped else "failed"
    entry |= {
        "exit": status,
        "seconds": round(seconds, 1),
        "last": [line for line in lines if line][-LINES:],
    }
    if entry["status"] == "done" and step.result:
        entry["result"] = json.loads(step.result.read_text())
    return entry


def run(command: list[str], environment: dict[str, str], output, seconds: float | None) -> int:
    """Run a command in the checkout, and end it with its children after some seconds, if given.

    Returns its exit status, negative after a signal.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60 * MARGIN)
    return process.returncode


def read(record: Path) -> list[dict]:
    """Return the entries of a record, [] if there is no file."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    return [json.loads(line) for line in lines]


def add(record: Path, entry: dict) -> None:
    """Append an entry to a record, whose file is replaced: no kill leaves half a line."""
    new = record.with_suffix(".new")
    text = "".join(json.dumps(one) + "\n" for one in (*read(record), entry))
    new.write_text(text, encoding="utf-8")
    new.replace(record)


def log(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
