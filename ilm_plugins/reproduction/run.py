"""Runs of cells: tools/train_net.py in subprocesses, which are resumed until training is complete.

A cell is a row of a paper's table (:mod:`.registry`); a run is a cell trained or tested with one
seed; its record (:mod:`.record`) has the results.
"""

import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import ERROR_FILE, RunError, UnexpectedError, UserError, read_error
from ..frameworks.command import explain
from ..frameworks.output_folder import check_output
from . import launch, record, registry
from .launch import Launch
from .record import framework
from .registry import NOT_HERE, ROOT, Cell

RECORD = "record.json"
#: Held while a config is read: reading executes Python, which is not safe in several threads.
CONFIG_LOCK = threading.Lock()


@dataclass(frozen=True)
class Options:
    """What a user asks of all runs; see ``tools/reproduce.py run --help``.

    Attributes:
        seeds: random seeds; each cell is run once with each.
        length: training length in ``unit``; None for the config's own.
        unit: "epochs" or "iterations".
        minutes: time after which everything stops; None for no limit.
        num_gpus: GPUs of a run; 0 for the CPU, None for one GPU if there is any.
        jobs: number of runs at the same time.
        miniature: whether to train two steps on generated images.
        data: folder of the images; None for the config's own.
        work_dir: folder of all runs.
        overrides: KEY=VALUE overrides of the configs.
        unsafe: whether to run code that checkpoints hold.
    """

    seeds: tuple[int, ...] = (0,)
    length: int | None = None
    unit: str = "epochs"
    minutes: float | None = None
    num_gpus: int | None = None
    jobs: int = 1
    miniature: bool = False
    data: str | None = None
    work_dir: Path = launch.DEFAULT_WORK_DIR
    overrides: tuple[str, ...] = ()
    unsafe: bool = False


@dataclass(frozen=True)
class Run:
    """One training or test: a cell, a seed, and the user's options."""

    cell: Cell
    seed: int
    options: Options

    @property
    def name(self) -> str:
        """Cell and seed, as in messages."""
        return f"{self.cell.id}, seed {self.seed}"

    @property
    def command(self) -> str:
        """The command of tools/reproduce.py that repeats this run alone."""
        options = self.options
        words = ["run", self.cell.table, self.cell.name, "--seeds", self.seed]
        words += [f"--{options.unit}", options.length] if options.length else []
        words += ["--num-gpus", options.num_gpus] if options.num_gpus is not None else []
        words += ["--data", options.data] if options.data else []
        words += ["--miniature"] if options.miniature else []
        words += ["--unsafe"] if options.unsafe else []
        words += ["--work-dir", options.work_dir] if options.work_dir != Options.work_dir else []
        return f"python tools/reproduce.py {shlex.join(map(str, [*words, *options.overrides]))}"

    @property
    def root(self) -> Path:
        """The folder of all runs, or of all miniature runs."""
        folder = self.options.work_dir
        return folder / "miniature" if self.options.miniature else folder

    @property
    def folder(self) -> Path:
        """The run's output folder."""
        return self.root / self.cell.folder / f"seed{self.seed}"

    @property
    def length(self) -> tuple[int, str]:
        """The planned length and its unit, "epochs" or "iterations"; 0 if the run only tests."""
        recipe, unit = framework(self.cell.config).length(str(ROOT / self.cell.config))
        if self.cell.tests:
            return 0, unit
        if self.options.miniature:
            return 2, unit
        own = self.options.length if self.options.unit == unit else None
        return own or recipe, unit

    @property
    def before(self) -> "Run | None":
        """The run of the same seed whose checkpoint this one tests or starts from, or None."""
        setting = framework(self.cell.config).PRETRAINED
        given = any(word.startswith(f"{setting}=") for word in self.options.overrides)
        starts_from = None if self.options.miniature or given else self.cell.starts_from
        other = self.cell.tests or starts_from
        if other is None:
            return None
        return Run(registry.home(registry.named(other)), self.seed, self.options)


class Stopped(Exception):
    """The time limit was reached, or all runs were stopped."""


def plan(cells: Sequence[Cell], options: Options) -> list[Run | Cell]:
    """List the runs, one for each seed, and the cells to compute, each once.

    Cells that share an experiment give the same runs; cells that are not implemented are left out.

    Raises:
        UserError: no cell is left.
    """
    found: dict[str, Run | Cell] = {}
    for cell in cells:
        cell = registry.home(cell)
        if cell.config:
            for seed in options.seeds:
                found[f"{cell.id} {seed}"] = Run(cell, seed, options)
        elif cell.of is not None:
            found[cell.id] = cell
    if not found:
        raise UserError(f"{', '.join(cell.id for cell in cells)}: {NOT_HERE}; choose another")
    return list(found.values())


def perform(planned: Sequence[Run | Cell], options: Options) -> int:
    """Perform runs and compute cells, ``options.jobs`` at once, and print a line about each.

    An exception that a signal raises here, such as KeyboardInterrupt, stops all runs.

    Returns:
        The exit status: 0, or the highest one of the failures.

    Raises:
        UserError: the folder of the runs cannot be written.
    """
    check_output(str(options.work_dir), "--work-dir")
    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    stop = threading.Event()
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            return max(pool.map(lambda one: _perform_one(one, options, deadline, stop), planned))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _perform_one(one: Run | Cell, options: Options, deadline: float, stop: threading.Event) -> int:
    """Perform one run or compute one cell, and print a line with its figures or its error.

    Args:
        one: the run, or a cell to compute.
        options: the user's options.
        deadline: when to stop, on the clock of ``time.monotonic``.
        stop: when set, stops too.

    Returns:
        The exit status: 0, also if it was stopped, or that of the error.
    """
    name = one.id if isinstance(one, Cell) else one.name
    try:
        found = (
            _compute(one, options)
            if isinstance(one, Cell)
            else _train_and_test(one, deadline, stop)
        )
        print(f"{name}: {told(found)}", flush=True)
    except Stopped:
        print(f"{name}: {_progress(one)}; run the same command to go on", flush=True)
    except Exception as error:
        line = explain(error)
        if isinstance(line, UnexpectedError):
            raise
        print(f"{name}: error: {line}", file=sys.stderr, flush=True)
        return line.status
    return 0


def told(found: dict) -> str:
    """Format a record's figures and its label: "top-1 error 23.4 (full recipe)"."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found["figures"].items())
    return f"{figures or 'no figure'} ({found['label']})"


def _progress(one: Run | Cell) -> str:
    """Describe how far a stopped run or cell has come: "stopped at 3 of 90 epochs"."""
    if isinstance(one, Cell):
        return "not begun, time is up"
    (total, unit), config = one.length, one.cell.config
    done, _ = framework(config).progress(one.folder)
    return f"{'stopped' if one.folder.is_dir() else 'not begun'} at {done} of {total} {unit}"


def _compute(cell: Cell, options: Options) -> dict:
    """Compute a cell's figures, which need no training; write and return the record."""
    from . import computed

    found = {
        "table": cell.table,
        "cell": cell.name,
        "label": "computed",
        "figures": {name: float(f"{v:.6g}") for name, v in computed.compute(cell).items()},
        "seed": None,
        "curve": [],
        "command": f"python tools/reproduce.py run {cell.table} {shlex.quote(cell.name)}",
        "torch": torch.__version__,
        "commit": launch.commit(),
    }
    record.write(found, options.work_dir / cell.folder / RECORD)
    return found


def _train_and_test(run: Run, deadline: float, stop: threading.Event) -> dict:
    """Train a run until it is complete, resuming it if it was begun, then test it.

    Returns:
        The record, which is also written if an error or a stop ends the run.

    Raises:
        Stopped, UserError, RunError: see :func:`_execute`, :func:`_overrides` and
            :func:`_check_same_settings`.
    """
    module = framework(run.cell.config)
    with CONFIG_LOCK:
        overrides, (total, _) = _overrides(run), run.length
        _check_same_settings(run, overrides)
    try:
        if total and not module.complete(run.folder, total):
            _execute(run, ["--resume"], overrides, deadline, stop)
        with CONFIG_LOCK:
            needed = _tests_to_do(run, overrides)
        for options in needed:
            resume = [] if run.cell.tests else ["--resume"]
            _execute(run, ["--eval-only", *resume, *options], overrides, deadline, stop)
        if run.cell.tests and needed:
            with CONFIG_LOCK:
                _write_launch(run, overrides)
    except BaseException:
        with CONFIG_LOCK, suppress(UserError):
            _write_record(run)
        raise
    with CONFIG_LOCK:
        return _write_record(run)


def _write_record(run: Run) -> dict:
    """Write a run's record, with the record of the run that it starts from or tests, and return it.

    Raises:
        UserError: the folder holds no run.
    """
    before = run.before
    if before is not None:
        try:
            before = _build_record(before)
        except UserError:
            # Only the checkpoint of that run may be left.
            cell = before.cell
            before = {"table": cell.table, "cell": cell.name, "label": record.NO_RECORD}
    found = _build_record(run, before)
    record.write(found, run.folder / RECORD)
    return found


def _build_record(run: Run, before: dict | None = None) -> dict:
    """Build the record of a run from its folder.

    Args:
        run: the run.
        before: the record of the run whose checkpoint it starts from or tests.

    Raises:
        UserError: the folder holds no run of tools/reproduce.py.
    """
    started = launch.read(run.folder)
    if started is None:
        raise UserError(f"{run.folder} has no {launch.FILE}, so no run of tools/reproduce.py")
    return record.record(run.cell, run.folder, started, before)


def _tests_to_do(run: Run, overrides: list[str]) -> list[tuple[str, ...]]:
    """List the tests that the table's figures need and that have not been made yet.

    If the run only tests, all tests are needed again after a change of settings.

    Returns:
        For each test, its options of tools/train_net.py.
    """
    needed = record.tests(run.cell)
    if not needed:
        return []
    checkpoint = _complete_checkpoint(run.before) if run.cell.tests else None
    if run.cell.tests:
        started = launch.read(run.folder)
        if started is None or _changed_settings(run, started, overrides):
            return needed
    made = framework(run.cell.config).tests_made(run.folder, checkpoint)
    return [options for options in needed if options not in made]


def _overrides(run: Run) -> list[str]:
    """Return the config overrides with which tools/train_net.py performs a run.

    Raises:
        UserError: the run that it starts from or tests is not complete; --epochs is given for a
            config that counts iterations, or the reverse; or the batch size is not the recipe's.
    """
    options, config = run.options, str(ROOT / run.cell.config)
    module = framework(run.cell.config)
    recipe, unit = module.length(config)
    words = module.spelled(run.cell.overrides) + module.settings(config, run.folder, run.seed)
    if options.data:
        words += module.on_data(config, options.data)
    if options.miniature:
        from . import miniature

        words += miniature.overrides(config, run.root / "data")
    elif options.length and not run.cell.tests:
        if options.unit != unit:
            raise UserError(f"--{options.unit}: {run.cell.id} counts {unit}; give --{unit} N")
        words += module.shortened(config, options.length) if options.length != recipe else []
    if run.before is not None:
        uses = module.testing if run.cell.tests else module.starting_from
        words += uses(_complete_checkpoint(run.before))
    if not (run.cell.tests or options.miniature):
        _check_batch(run)
    return words + module.spelled(options.overrides)


def _check_batch(run: Run) -> None:
    """Raise UserError unless the batch size over all processes is that of the recipe."""
    config, processes = str(ROOT / run.cell.config), run.options.num_gpus or 1
    given = [*run.cell.overrides, *run.options.overrides]
    own, whole = framework(run.cell.config).batch(config, given, processes)
    if own != whole and "auto_scale_lr.enable=True" not in given:
        each = own // processes
        raise UserError(
            f"{run.cell.id} is for batches of {whole} images; {processes} x {each} are {own}; "
            f"give --num-gpus {max(1, whole // each)}, or train_dataloader.batch_size="
            f"{max(1, whole // processes)}, or auto_scale_lr.enable=True for another learning rate"
        )


def _complete_checkpoint(run: Run) -> str:
    """Return the last checkpoint of a run that another one starts from or tests.

    Raises:
        UserError: its training is not complete.
    """
    done, checkpoint = framework(run.cell.config).progress(run.folder)
    total, unit = run.length
    if done < total:
        raise UserError(
            f"needs the checkpoint of {run.name}, which is at {done} of {total} {unit} in "
            f"{run.folder}; run tools/reproduce.py run {run.cell.table} {run.cell.name!r} first"
        )
    return checkpoint


def _check_same_settings(run: Run, overrides: list[str]) -> None:
    """Raise UserError if the folder has a run that was begun with other or unknown settings."""
    begun, _ = framework(run.cell.config).progress(run.folder)
    if not begun:
        return
    started = launch.read(run.folder)
    if started is None:
        raise UserError(
            f"{run.folder} holds a run whose settings are unknown: no {launch.FILE}; "
            "give another --work-dir"
        )
    other = _changed_settings(run, started, overrides)
    if other:
        raise UserError(
            f"{run.folder} was begun with other settings ({', '.join(other)}); give those that it "
            "was begun with, or another --work-dir"
        )


def _current_launch(run: Run, overrides: list[str]) -> Launch:
    """Build the Launch of a run's present settings; commit, versions and device stay unset."""
    return Launch(
        command=run.command,
        overrides=overrides,
        given=list(run.options.overrides),
        length=run.length[0],
        seed=run.seed,
        processes=run.options.num_gpus or 1,
        miniature=run.options.miniature,
        work_dir=str(run.options.work_dir),
    )


def _changed_settings(run: Run, started: Launch, overrides: list[str]) -> list[str]:
    """Return the overrides that differ between a run as it is and as it was started before.

    Args:
        run: the run as it is asked for now.
        started: how the run in its folder was started.
        overrides: those of tools/train_net.py now.

    Returns:
        Overrides that only one of the two has; if the batch size differs, also the former
        --num-gpus. A cell's own overrides are ignored: they were once lines of the config files.
    """
    module, now = framework(run.cell.config), _current_launch(run, overrides)
    own = module.spelled(run.cell.overrides)
    before, after = started.settings(own), now.settings(own)
    other = sorted({*before} ^ {*after}) or [" ".join(before)] * (before != after)
    batches = {record.batch(run.cell, one) for one in (started, now)}
    return other + [f"--num-gpus {started.processes}"] * (len(batches) > 1)


def _write_launch(run: Run, overrides: list[str]) -> None:
    """Write launch.json to a run's folder; it lists the commits of all starts so far."""
    begun, _ = framework(run.cell.config).progress(run.folder)
    started = launch.read(run.folder) if begun else None
    commits = [*((started and started.commit) or "").split(", "), launch.commit()]
    packages = ("detectron2", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
    found = replace(
        _current_launch(run, overrides),
        commit=", ".join(dict.fromkeys(filter(None, commits))) or None,
        versions=launch.versions(*packages),
        device=launch.device(run.options.num_gpus),
    )
    launch.write(found, run.folder)


def _execute(
    run: Run, words: list[str], overrides: list[str], deadline: float, stop: threading.Event
) -> None:
    """Run tools/train_net.py in a subprocess and wait for it; its output goes to output.log.

    For a run that trains, it first writes launch.json to the run's folder; for one that only tests,
    the caller does so afterwards. If the deadline has passed or ``stop`` is set already, nothing is
    started or written.

    Args:
        run: the run, whose folder is made if missing.
        words: further options, such as --resume.
        overrides: config overrides.
        deadline: when to stop, on the clock of ``time.monotonic``.
        stop: when set, stops too.

    Raises:
        Stopped: at the deadline, or when ``stop`` is set; the subprocess is terminated.
        UserError, RunError: the subprocess failed; the message is its own, if it left one, with the
            path of output.log.
    """
    if stop.is_set() or time.monotonic() >= deadline:
        raise Stopped
    gpus = run.options.num_gpus
    device = [] if gpus is None else ["--num-gpus", str(gpus)]
    device += ["--unsafe"] if run.options.unsafe else []
    tool, config = str(ROOT / "tools" / "train_net.py"), str(ROOT / run.cell.config)
    command = [sys.executable, tool, "--config-file", config, *device, *words, *overrides]
    module, log = framework(run.cell.config), run.folder / "output.log"
    data = run.root / "data" if run.options.miniature else run.options.data
    environment = module.environment(data) if data else {}
    run.folder.mkdir(parents=True, exist_ok=True)
    failed = run.folder / ".error"
    failed.unlink(missing_ok=True)
    if not run.cell.tests:
        # Written first, since a training may be killed; for tests, it is written after them.
        with CONFIG_LOCK:
            _write_launch(run, overrides)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, ERROR_FILE: str(failed)},
            # A process group of its own, so that data loader processes are terminated with it.
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if stop.is_set() or time.monotonic() >= deadline:
                    raise Stopped
                time.sleep(0.2)
        finally:
            _terminate(process)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise RunError(f"ended by {name}; a process out of memory ends so, too (see {log})")
    if process.returncode:
        kind = UserError if process.returncode == UserError.status else RunError
        error = read_error(failed) or kind(f"exit status {process.returncode}")
        raise type(error)(f"{error} (see {log})")


def _terminate(process: subprocess.Popen) -> None:
    """Terminate a process and its children: SIGTERM, then SIGKILL, up to 20 seconds each."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
