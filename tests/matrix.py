"""The test suite under other versions and without the frameworks: `make matrix`.

Each leg is an environment of its own, in a temporary folder (6 GB) that is removed before the next
leg. It is built from the pins in requirements/, some of which a leg replaces. The script needs
nothing but Python.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "output" / "matrix"
COUNTS = ("passed", "skipped", "failed")


class Variant(NamedTuple):
    """Settings under which a leg's tests run."""

    name: str
    #: NAME=VALUE of environment variables.
    environment: tuple[str, ...] = ()
    #: For pytest: files, a seed.
    options: tuple[str, ...] = ()
    #: What the processor must have, by its name in /proc/cpuinfo.
    flag: str = ""


class Leg(NamedTuple):
    """A Python, the pins that it replaces, and the frameworks beside them."""

    name: str
    python: str
    pins: tuple[str, ...] = ()
    frameworks: tuple[str, ...] = ()
    #: The packages to install, with what they need; by default, all that have a pin.
    packages: tuple[str, ...] = ()
    #: Each runs in the leg's environment, one after the other.
    variants: tuple[Variant, ...] = (Variant("suite"),)


OLDEST = (
    *("torch==2.4.0", "torchvision==0.19.0", "wrapt==1.15.0", "numpy==1.26.4"),
    *("torchmetrics==1.4.2", "pillow==10.1.0", "ml_dtypes==0.5.4"),
)
NEWEST = "torch==2.15.0", "torchvision==0.29.2"
BARE = "torch", "wrapt", "pytest", "pytest-xdist", "setuptools", "wheel"
BOTH = "detectron2", "openmmlab"
#: Tests that compare numbers, whose last bits depend on the processor and on the number of threads.
NUMERIC = (
    *(f"tests/layers/test_{name}.py" for name in ("behaviour", "equations", "properties")),
    *("tests/ops/test_backends.py", "tests/ops/test_moments.py", "tests/test_surgery.py"),
)
NUMERICS = (
    Variant("ATen without SIMD", ("ATEN_CPU_CAPABILITY=default",), NUMERIC),
    Variant("ATen with AVX2", ("ATEN_CPU_CAPABILITY=avx2",), NUMERIC, "avx2"),
    Variant("ATen with AVX-512", ("ATEN_CPU_CAPABILITY=avx512",), NUMERIC, "avx512f"),
    Variant("oneDNN with SSE4.1", ("ONEDNN_MAX_CPU_ISA=SSE41",), NUMERIC, "sse4_1"),
    Variant("oneDNN with AVX2", ("ONEDNN_MAX_CPU_ISA=AVX2",), NUMERIC, "avx2"),
    *(Variant(f"{n} threads", (f"OMP_NUM_THREADS={n}",), NUMERIC) for n in (2, 5)),
    *(
        Variant(f"seed {n}", (), (*NUMERIC, f"--seed={n}", f"--hypothesis-seed={n}"))
        for n in range(1, 21)
    ),
)
#: The quickest first. What `make test` runs under, one Python with all, is no leg.
LEGS = (
    Leg("py312-bare", "3.12", packages=BARE),
    Leg("py310-torch2.4", "3.10", OLDEST),
    Leg("py313-torch2.15", "3.13", NEWEST),
    Leg("py311-detectron2", "3.11", frameworks=("detectron2",)),
    Leg("py311-openmmlab", "3.11", frameworks=("openmmlab",)),
    Leg("py310-both", "3.10", frameworks=BOTH),
    Leg("py313-both", "3.13", frameworks=BOTH),
    Leg("py311-numerics", "3.11", variants=NUMERICS),
)


def pins(leg: Leg) -> dict[str, str]:
    """The version of each package that the tests take, under the leg's own pins."""
    files = (ROOT / "requirements" / f"{name}.txt" for name in ("base", "test"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in (*lines, *leg.pins) if "==" in line)


def interpreter(version: str) -> str | None:
    """The first ``python{version}`` on PATH, or of pyenv, that runs and is of that version."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    # pyenv's own on PATH run only those versions that its user has chosen.
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for folder in (*os.get_exec_path(), *sorted(pyenv.glob(f"{version}.*/bin"))):
        path = shutil.which(f"python{version}", path=folder)
        if path and subprocess.run([path, "-c", code], capture_output=True, text=True).stdout == (
            f"{version}\n"
        ):
            return path
    return None


def run(leg: Leg, python: str, folder: Path, jobs: int, log) -> dict[str, int]:
    """Build the leg's environment in ``folder`` and run the suite: how many tests passed, ...

    Raises:
        subprocess.CalledProcessError: a step of the build failed.
    """

    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def step(*command, check=True, settings=()):
        print("$", *settings, *command, file=log, flush=True)
        env = clean | dict(setting.split("=", 1) for setting in settings)
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log, check=check)
        return done.returncode

    executable, pinned = folder / "bin" / "python", folder / "pins.txt"
    pip = executable, "-m", "pip", "install", "--progress-bar", "off"
    step(python, "-m", "venv", folder)
    pinned.write_text("".join(f"{name}=={version}\n" for name, version in pins(leg).items()))
    step(*pip, *(("-c", pinned, *leg.packages) if leg.packages else ("-r", pinned)))
    step(*pip, "--no-deps", "--no-build-isolation", "-e", ".")
    if leg.frameworks:
        step("make", *(f"install-{name}" for name in leg.frameworks), f"VENV={folder}")
    results, total = folder / "results.xml", dict.fromkeys(COUNTS, 0)
    options = "-m", "not long", "-n", str(jobs), "-p", "no:cacheprovider", f"--junitxml={results}"
    for variant in leg.variants:
        if variant.flag not in ("", *processor_flags()):
            print(f"{variant.name}: skipped, no {variant.flag} here", file=log, flush=True)
            total["skipped"] += 1
            continue
        results.unlink(missing_ok=True)
        command = executable, "-m", "pytest", *options, *variant.options
        status = step(*command, check=False, settings=variant.environment)
        found = counts(results, status)
        print(f"{variant.name}: {found}", file=log, flush=True)
        total = {name: total[name] + found[name] for name in COUNTS}
    return total


def processor_flags() -> list[str]:
    """What the processor has, such as avx512f; nothing where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith("flags")), [])


def counts(results: Path, status: int) -> dict[str, int]:
    """The tests of a JUnit file, by outcome.

    Without a file, or tests that passed, or with another exit status than 0, one failure at least.
    """
    if not results.exists():
        return dict(zip(COUNTS, (0, 0, 1), strict=True))
    (suite,) = ElementTree.parse(results).getroot()
    total, skipped, failed, broken = (
        int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors")
    )
    passed = total - skipped - failed - broken
    failed = failed + broken or int(status != 0 or not passed)
    return dict(zip(COUNTS, (passed, skipped, failed), strict=True))


def outcome(leg: Leg, args: argparse.Namespace) -> dict:
    """The leg's counts and minutes, and a note."""
    python = interpreter(leg.python)
    if python is None:
        return {"note": f"not run: no python{leg.python} on PATH or in pyenv"}
    log = LOGS / f"{leg.name}.log"
    print(f"{leg.name}: running; see {log}", file=sys.stderr, flush=True)
    start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix=f"{leg.name}-"))
    try:
        with log.open("w") as stream:
            found = run(leg, python, folder, args.jobs, stream)
        note = f"see {log}" if found["failed"] else ""
    except subprocess.CalledProcessError:
        found, note = {"failed": 1}, f"not built: see {log}"
    finally:
        if args.keep:
            print(f"{leg.name}: kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return found | {"minutes": round((time.monotonic() - start) / 60, 1), "note": note}


def table(outcomes: dict[Leg, dict]) -> str:
    """One line a leg: what it is, how many tests passed, ..., the minutes, and the note."""
    rows = [("leg", "Python", "torch", "frameworks", *COUNTS, "minutes", "")]
    for leg, found in outcomes.items():
        frameworks = " ".join(leg.frameworks) or "none"
        figures = (str(found.get(name, "")) for name in (*COUNTS, "minutes", "note"))
        rows.append((leg.name, leg.python, pins(leg)["torch"], frameworks, *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("legs", nargs="*", metavar="LEG", help="only these (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that test (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--strict", action="store_true", help="fail if a Python is missing")
    args = parser.parse_args(argv)
    names = [leg.name for leg in LEGS]
    for name in args.legs:
        if name not in names:
            parser.error(f"no leg {name!r}; the legs are {', '.join(names)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    outcomes = {leg: outcome(leg, args) for leg in LEGS if leg.name in (args.legs or names)}
    print(table(outcomes))
    return int(any(found.get("failed", args.strict) for found in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
