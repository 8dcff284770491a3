"""The runs of a comparison, one after the other, each an ordinary training in a subprocess."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from ...errors import UserError
from ...frameworks import run_record
from ...frameworks.folders import last_checkpoint
from ...frameworks.parent import command_line, ending_with_us
from ...frameworks.run_record import EVALUATES, PLAIN, read
from .comparison_plan import OWN_TEST, AnyPlan
from .results import Value, main_metric

#: Least number of seconds between two updates of the progress bar.
INTERVAL = 1.0 if sys.stderr.isatty() else 60.0
#: Seconds between two looks at a run's progress.
PAUSE = 1.0
BAR = "{desc} {percentage:.0f}% of {total} runs |{bar}| {elapsed}, {remaining} left"


def run_all(plan: AnyPlan) -> None:
    """Train and test all unfinished runs; a run that fails does not end the others.

    UserError if the first run that is tested lacks the metric to compare.
    """
    tests = ["", *plan.tests]
    todo = [(seed, norm) for seed in plan.seeds for norm in plan.norms]
    with tqdm(total=len(todo), bar_format=BAR, mininterval=INTERVAL) as bar:
        for done, (seed, norm) in enumerate(todo):
            bar.update(done - bar.n)
            bar.set_description(f"{norm}, seed {seed}")
            if not train(plan, norm, seed, bar):
                plan.check_found()
            else:
                for test in tests:
                    bar.set_description(f"{norm}, seed {seed}, {EVALUATES}")
                    evaluate(plan, norm, seed, test, bar)
                    if plan.metric and not test:
                        found = metrics(plan, norm, seed).items()
                        main_metric([Value(norm, seed, test, *one) for one in found], plan.metric)
        bar.update(len(todo) - bar.n)
        bar.set_description("all runs")


def train(plan: AnyPlan, norm: str, seed: int, bar: tqdm) -> bool:
    """Train a run, or continue its training; return whether it is complete."""
    folder = plan.folder(norm, seed)
    if is_complete(folder) or has_diverged(folder):
        return is_complete(folder)
    begun = bar.n
    for record in call(plan.training(norm, seed), folder):
        state = f", {EVALUATES}" if record.get(EVALUATES) else ""
        if bar.desc != (shown := f"{norm}, seed {seed}{state}: "):
            bar.set_description_str(shown)
        bar.update(begun + record.get("run", 0) / max(1, record.get("planned", 1)) - bar.n)
    return is_complete(folder)


def evaluate(plan: AnyPlan, norm: str, seed: int, test: str, bar: tqdm | None = None) -> None:
    """Evaluate a trained run by a test, "" for the config's own, if it has no metrics yet."""
    folder = plan.folder(norm, seed)
    if metrics(plan, norm, seed, test):
        return
    target = plan.folder(norm, seed, test)
    try:
        checkpoint = last_checkpoint(folder)
    except UserError as error:  # a reason for this run; the others go on
        with log_of(target).open("a", encoding="utf-8") as file:
            print(error, file=file)
        return
    for _ in call(plan.evaluation(norm, seed, test, checkpoint), target):
        if bar is not None:
            bar.update(0)  # the time


def call(arguments: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Run a command, its output in FOLDER.log; yield its record, empty at first, every PAUSE."""
    log = log_of(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = start(arguments, file)
        try:
            while process.poll() is None:
                time.sleep(PAUSE)
                yield read(folder) or {}
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def log_of(folder: Path) -> Path:
    """Return the file with the output of a training or an evaluation."""
    return folder.with_name(folder.name + ".log")


def start(arguments: Sequence[str], file: IO) -> subprocess.Popen:
    """Start a command of the package, its output in a file."""
    options = {"stdout": file, "stderr": subprocess.STDOUT, "env": ending_with_us()}
    return subprocess.Popen(command_line(arguments), **options)


def is_complete(folder: Path) -> bool:
    return run_record.is_complete(read(folder))


def has_diverged(folder: Path) -> bool:
    return "diverged" in (read(folder) or {})


def metrics(plan: AnyPlan, norm: str, seed: int, test: str = "") -> dict[str, float]:
    """Return the metrics of a run by a test; empty if there are none yet."""
    record = read(plan.folder(norm, seed, test)) or {}
    return record.get("metrics", {}).get(PLAIN, {}) if is_complete(plan.folder(norm, seed)) else {}


def failure(plan: AnyPlan, norm: str, seed: int, test: str = "") -> str | None:
    """Return why a run has no result by a test; None if it has one.

    A further test of a run that is not complete has no reason of its own.
    """
    folder = plan.folder(norm, seed)
    if test and not is_complete(folder):
        return None
    if has_diverged(folder):
        return f"diverged: {read(folder)['diverged']}"
    if metrics(plan, norm, seed, test):
        return None
    log = log_of(plan.folder(norm, seed, test))
    if not log.is_file():
        return "not run"
    text = log.read_text(encoding="utf-8", errors="replace")  # a kill may cut a character
    lines = [line for line in text.splitlines() if line.strip()]
    return f"failed: {lines[-1][:200] if lines else 'no output'}; see {log}"


def collect(plan: AnyPlan) -> list[Value]:
    """Return all metrics of all runs, and the failures."""
    values = []
    for norm in plan.norms:
        for seed in plan.seeds:
            for test in ("", *plan.tests):
                name = test or OWN_TEST
                if (reason := failure(plan, norm, seed, test)) is not None:
                    values.append(Value(norm, seed, name, "", None, reason))
                found = metrics(plan, norm, seed, test).items()
                values += [Value(norm, seed, name, *one) for one in found]
    return values
