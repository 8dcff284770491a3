"""Runs of cells: tools/train_net.py in subprocesses, which are resumed until training is complete.

A cell is a row of a paper's table (:mod:`.registry`); a run is a cell trained or tested with one
seed; its record (:mod:`.record`) has the results.
"""

import asyncio
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..cli import environment
from ..errors import ERROR_FILE, RunError, UnexpectedError, UserError, read_error
from ..frameworks.command import explain
from ..frameworks.output_folder import check_output
from ..frameworks.run_summary import RunFolders
from . import record, registry, run_settings
from .registry import Cell
from .run_settings import RunSettings

RECORD = "record.json"
#: Seconds from one line of progress to the next.
PROGRESS = 10


@dataclass(frozen=True)
class Options:
    """The user's settings for all runs: the options of ``python -m ilm_plugins reproduce run``.

    Attributes:
        seeds: random seeds; each cell is run once with each.
        epochs, iterations: training length, for configs that count these; None for their own.
        minutes: time after which everything stops.
        num_gpus: GPUs of a run; 0 for the CPU, None for one GPU if there is any.
        jobs: number of runs at the same time.
        miniature: whether to train two epochs or iterations on a few generated images.
        data: folder of the images; None for the config's own.
        augment_batches: whether to augment whole batches, on the model's device.
        work_dir: folder of all runs.
        overrides: KEY=VALUE overrides of the configs.
        unsafe: whether to run code that checkpoints hold.
        traceback: whether to print the tracebacks of errors.
    """

    seeds: Sequence[int] = (0,)
    epochs: int | None = None
    iterations: int | None = None
    minutes: float = math.inf
    num_gpus: int | None = None
    jobs: int = 1
    miniature: bool = False
    data: str | None = None
    augment_batches: bool = False
    work_dir: Path = run_settings.DEFAULT_WORK_DIR
    overrides: Sequence[str] = ()
    unsafe: bool = False
    traceback: bool = False


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
    def framework(self) -> RunFolders:
        """The module for configs and run folders of the cell's framework."""
        return record.framework(self.cell)

    @property
    def command(self) -> str:
        """The command of tools/reproduce.py that repeats this run alone, without a time limit."""
        options = self.options
        words = ["run", self.cell.table, self.cell.name, "--seeds", self.seed]
        words += ["--epochs", options.epochs] if options.epochs else []
        words += ["--iterations", options.iterations] if options.iterations else []
        words += ["--num-gpus", options.num_gpus] if options.num_gpus is not None else []
        words += ["--data", options.data] if options.data else []
        words += ["--augment-batches"] if options.augment_batches else []
        words += ["--miniature"] if options.miniature else []
        words += ["--unsafe"] if options.unsafe else []
        words += ["--work-dir", options.work_dir] if options.work_dir != Options.work_dir else []
        return (
            f"python -m ilm_plugins reproduce {shlex.join(map(str, [*words, *options.overrides]))}"
        )

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
        """The planned length and its unit, "epochs" or "iterations"; 0 if the run only tests.

        Raises:
            UserError: see :func:`.record.framework`.
        """
        recipe, unit = self.framework.length(self.cell.file)
        if self.cell.tests:
            return 0, unit
        chosen = 2 if self.options.miniature else getattr(self.options, unit)
        return chosen or recipe, unit

    @property
    def parent_run(self) -> "Run | None":
        """The run of the same seed whose checkpoint this one tests or starts from, or None.

        Miniatures, and runs with an override that names the checkpoint, start from no other run.
        Cells that only test have one in any case: the run that they test.
        """
        setting = self.framework.PRETRAINED
        overridden = any(word.startswith(f"{setting}=") for word in self.options.overrides)
        starts_from = None if self.options.miniature or overridden else self.cell.starts_from
        other = self.cell.tests or starts_from
        if other is None:
            return None
        return Run(registry.canonical_cell(registry.find_cell(other)), self.seed, self.options)


class Stopped(Exception):
    """The time limit was reached."""


def plan(cells: Sequence[Cell], options: Options) -> list[Run | Cell]:
    """List the runs, one for each seed, and the cells to compute, each once.

    Cells that share an experiment give the same runs, those of the first such cell in the papers.
    Nothing is run yet.

    Args:
        cells: the cells that the user asked for.
        options: the user's options; all runs keep them.
    """
    found: dict[str, Run | Cell] = {}
    for cell in map(registry.canonical_cell, cells):
        if cell.config:
            found |= {f"{cell.id} {seed}": Run(cell, seed, options) for seed in options.seeds}
        else:
            found[cell.id] = cell
    return list(found.values())


def run_all(planned: Sequence[Run | Cell], options: Options) -> int:
    """Train and test runs and compute cells, ``options.jobs`` at once; print progress and results.

    Each one's results go to record.json in its folder; ``options.work_dir`` is made if missing. A
    run that starts from another one, or tests it, waits until that has ended. A KeyboardInterrupt
    stops all runs. After a failure, the other runs continue.

    Args:
        planned: the result of :func:`plan`, at least one.
        options: the user's options.

    Returns:
        The exit status: 0, also if the time limit stopped runs, or the highest one of the failures.

    Raises:
        UserError: the folder of the runs cannot be written.
    """
    check_output(str(options.work_dir), "--work-dir")
    return asyncio.run(_run_all(planned, options))


async def _run_all(planned: Sequence[Run | Cell], options: Options) -> int:
    """Do the work of :func:`run_all`; cancellation terminates the subprocesses of all runs.

    The time limit of ``options`` counts from this call.
    """
    deadline = time.monotonic() + 60 * options.minutes
    slots = asyncio.Semaphore(options.jobs)
    ended = {job.name: asyncio.Event() for job in planned}

    async def run_job(job: Run | Cell) -> int:
        parent = None
        with suppress(UserError):  # _run_job prints it
            parent = job.parent_run if isinstance(job, Run) else None
        if parent is not None and parent.name in ended:
            await ended[parent.name].wait()
        try:
            async with slots:
                return await _run_job(job, options, deadline)
        finally:
            ended[job.name].set()

    # An exception must not end this before all subprocesses are terminated.
    statuses = await asyncio.gather(*map(run_job, planned), return_exceptions=True)
    for status in statuses:
        if isinstance(status, Exception):
            raise status
    return max(statuses)


async def _run_job(job: Run | Cell, options: Options, deadline: float) -> int:
    """Train and test a run, or compute a cell, and print a line with its figures or its error.

    ``deadline`` is when to stop, on the clock of ``time.monotonic``. Returns the exit status: 0,
    also if it was stopped; after an error, which is printed to stderr, the error's.
    """
    computed = isinstance(job, Cell)
    name = job.id if computed else job.name
    try:
        found = _compute(job, options) if computed else await _train_and_test(job, deadline)
        print(f"{name}: {record.describe(found)}", flush=True)
    except Stopped:
        (total, unit), (done, _) = job.length, job.framework.progress(job.folder)
        state = "stopped" if job.folder.is_dir() else "not begun"
        length = f" at {done} of {total} {unit}" * bool(total)
        print(f"{name}: {state}{length}; run the same command to continue", flush=True)
    except Exception as error:
        line = explain(error)
        told = str(line)
        if isinstance(line, UnexpectedError):
            told = f"unexpected {line}; give --traceback for the traceback"
        if options.traceback:
            traceback.print_exception(error)
        print(f"{name}: error: {told}", file=sys.stderr, flush=True)
        return line.status
    return 0


def _compute(cell: Cell, options: Options) -> dict:
    """Compute a cell's figures, which need no training; write and return the record.

    The record is written to WORK_DIR/TABLE/CELL/record.json.

    Raises:
        UserError: see :func:`.computed.compute`.
    """
    from . import computed

    found = {
        "table": cell.table,
        "cell": cell.name,
        "label": "computed",
        "figures": {name: float(f"{v:.6g}") for name, v in computed.compute(cell).items()},
        "seed": None,
        "curve": [],
        "command": f"python -m ilm_plugins reproduce run {cell.table} {shlex.quote(cell.name)}",
        "versions": {"torch": torch.__version__},
        "commit": environment.commit(),
    }
    record.write(found, options.work_dir / cell.folder / RECORD)
    return found


async def _train_and_test(run: Run, deadline: float) -> dict:
    """Train a run until it is complete, resuming it if it was begun, then test it.

    Trainings and tests that were completed earlier are not repeated. A cell that only tests is not
    trained. ``deadline`` is when to stop, on the clock of ``time.monotonic``.

    Returns:
        The record, which is written to the run's folder; also if an error or a stop ends the run,
        unless the folder holds no run yet.

    Raises:
        Stopped, UserError, RunError: see :func:`_execute`, :func:`_current_settings`,
            :func:`_check_batch` and :func:`_check_same_settings`.
    """
    try:
        settings, (total, _) = _current_settings(run), run.length
    except UserError:
        _check_time(deadline)  # the run that this one needs may have been stopped
        raise
    _check_batch(run, settings)
    _check_same_settings(run, settings)
    try:
        if total and not run.framework.is_complete(run.folder, total):
            await _execute(run, settings, ["--resume"], deadline)
        needed = _tests_to_do(run, settings)
        for options in needed:
            resume = [] if run.cell.tests else ["--resume"]
            predictions = run.folder / "".join(["predictions", *options])
            words = run.framework.prediction_overrides(run.cell.file, predictions)
            await _execute(run, settings, ["--eval-only", *resume, *options, *words], deadline)
        if needed:
            _write_settings(run, settings)
    except BaseException:
        with suppress(UserError):
            _write_record(run)
        raise
    return _write_record(run)


def _write_record(run: Run) -> dict:
    """Write the record of a run to its folder, and return it.

    Raises:
        UserError: the folder holds no run.
    """
    found = _build_record(run)
    record.write(found, run.folder / RECORD)
    return found


def _build_record(run: Run) -> dict:
    """Build and return the record of a run from its folder.

    If the run starts from another run, or tests one, the label also says how that other run differs
    from the full recipe, or "no record" if its folder has only a checkpoint.

    Raises:
        UserError: the folder holds no run of tools/reproduce.py.
    """
    settings, parent_record = run_settings.read(run.folder), None
    if settings is None:
        raise UserError(f"{run.folder} has no {run_settings.FILE}, so it is not a run of reproduce")
    if run.parent_run is not None:
        cell = run.parent_run.cell
        # Only the checkpoint of that run may be left.
        parent_record = {"table": cell.table, "cell": cell.name, "label": "no record"}
        with suppress(UserError):
            parent_record = _build_record(run.parent_run)
    return record.build(run.cell, run.folder, settings, parent_record)


def _tests_to_do(run: Run, settings: RunSettings) -> list[tuple[str, ...]]:
    """List the tests that the table's figures need and that have not been made yet.

    If a setting of the test differs from the run's launch.json, all tests are needed again. A run
    that only tests needs them if any setting or the tested checkpoint differs.

    Returns:
        For each test, its options of tools/train_net.py.

    Raises:
        UserError: the run that this one tests is not complete, or launch.json is invalid.
    """
    needed, checkpoint = record.tests(run.cell), None
    if needed:
        saved_settings = run_settings.read(run.folder)
        saved, new = ({*(s.overrides if s else ())} for s in (saved_settings, settings))
        if run.cell.tests:
            checkpoint = _complete_checkpoint(run.parent_run)
        else:
            saved, new = ({w for w in words if w.startswith("test_")} for words in (saved, new))
        if saved != new:
            return needed
    made = run.framework.tests_made(run.folder, checkpoint)
    return [options for options in needed if options not in made]


def _overrides(run: Run) -> list[str]:
    """Return the config overrides with which tools/train_net.py makes a run, the user's last.

    For a miniature, the generated images are written if they are missing.

    Raises:
        UserError: the run that it starts from or tests is not complete; --epochs is given for a
            training that counts iterations, or the reverse; batches of the config cannot be
            augmented as a whole; or, for MMEngine, the folder of --data does not exist.
    """
    options, config, module = run.options, run.cell.file, run.framework
    words = module.to_words(run.cell.overrides) + module.run_overrides(config, run.folder, run.seed)
    if options.data:
        words += module.data_overrides(config, options.data)
    if options.miniature:
        from . import miniature

        words += miniature.overrides(config, run.root / "data")
    elif not run.cell.tests:
        length, unit = run.length
        other = "epochs" if unit == "iterations" else "iterations"
        if getattr(options, other):
            raise UserError(f"--{other}: {run.cell.id} counts {unit}; give --{unit} N")
        if length != module.length(config)[0]:
            words += module.length_overrides(config, length)
    if options.augment_batches and not run.cell.tests:
        words += module.augmentation_overrides(config)
    if run.parent_run is not None:
        uses = module.test_overrides if run.cell.tests else module.start_overrides
        words += uses(_complete_checkpoint(run.parent_run))
    return words + module.to_words(options.overrides)


def _check_batch(run: Run, settings: RunSettings) -> None:
    """Raise UserError unless the batch size over all processes is that of the recipe.

    Miniatures pass, and so do runs with the override auto_scale_lr.enable=True.
    """
    scaled = "auto_scale_lr.enable=True" in [*run.cell.overrides, *settings.given]
    batch_size, recipe_batch_size = record.batch(run.cell, settings)
    if batch_size != recipe_batch_size and not (scaled or run.options.miniature):
        processes = settings.processes
        each = batch_size // processes
        advice = ["auto_scale_lr.enable=True for another learning rate"]
        if recipe_batch_size % processes == 0:
            size = f"train_dataloader.batch_size={recipe_batch_size // processes}"
            advice.insert(0, f"{size} (the result is labelled with it)")
        if recipe_batch_size % each == 0:
            advice.insert(0, f"--num-gpus {recipe_batch_size // each}")
        raise UserError(
            f"{run.cell.id} is for batches of {recipe_batch_size} images; {processes} x {each} are "
            f"{batch_size}; give {', or '.join(advice)}"
        )


def _complete_checkpoint(run: Run) -> str:
    """Return the path of the last checkpoint of a run that another one starts from or tests.

    Raises:
        UserError: its training is not complete.
    """
    done, checkpoint = run.framework.progress(run.folder)
    total, unit = run.length
    if done < total:
        raise UserError(
            f"needs the checkpoint of {run.name}, which is at {done} of {total} {unit} in "
            f"{run.folder}; reproduce run {run.cell.table} {run.cell.name!r} first"
        )
    return checkpoint


def _check_same_settings(run: Run, settings: RunSettings) -> None:
    """Raise UserError if the folder has a run that was begun with other or unknown settings.

    ``settings`` describes the new start. A folder without a checkpoint passes.
    """
    begun, _ = run.framework.progress(run.folder)
    if not begun:
        return
    saved_settings = run_settings.read(run.folder)
    if saved_settings is None:
        raise UserError(
            f"{run.folder} holds a run whose settings are unknown: no {run_settings.FILE}; "
            "give another --work-dir"
        )
    other = _changed_settings(run, saved_settings, settings)
    if other:
        raise UserError(
            f"{run.folder} was begun with other settings ({', '.join(other)}); give the same, or "
            "another --work-dir"
        )


def _current_settings(run: Run) -> RunSettings:
    """Return the settings with which a run is started now; commit, versions and device stay unset.

    For a miniature, the generated images are written if they are missing.

    Raises:
        UserError: see :func:`_overrides`.
    """
    return RunSettings(
        command=run.command,
        overrides=_overrides(run),
        given=list(run.options.overrides),
        length=run.length[0],
        seed=run.seed,
        processes=run.options.num_gpus or 1,
        miniature=run.options.miniature,
    )


def _changed_settings(run: Run, saved_settings: RunSettings, settings: RunSettings) -> list[str]:
    """Return "NAME was OLD, is NEW" for each setting that differs between two starts of a run.

    Settings that do not change the experiment, such as paths and loader workers, are not compared;
    see ``HARMLESS`` in :class:`..frameworks.run_summary.RunFolders`.

    Args:
        run: the run.
        saved_settings: those with which it was started before.
        settings: those with which it is started now.
    """
    old, new = (
        {
            **found.changes(run.framework.HARMLESS),
            f"--{run.length[1]}": found.length,
            "batch size": record.batch(run.cell, found)[0],
            "--augment-batches": found.augments_batches,
            "packed images": found.packed,
        }
        for found in (saved_settings, settings)
    )
    return [
        f"{key} was {old.get(key, 'not given')}, is {new.get(key, 'not given')}"
        for key in old | new
        if old.get(key) != new.get(key)
    ]


def _write_settings(run: Run, settings: RunSettings) -> None:
    """Write settings with commit, versions and device to launch.json in a run's folder.

    If the folder has a checkpoint, the commits and devices of earlier starts come first.
    ``settings`` itself is unchanged.
    """
    begun, _ = run.framework.progress(run.folder)
    saved_settings = run_settings.read(run.folder) if begun else None
    packages = ("detectron2", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
    found = replace(
        settings,
        commit=environment.commit(),
        versions=run_settings.versions(*packages),
        device=run_settings.device(run.options.num_gpus),
    )
    if saved_settings is not None:
        found = found.after(saved_settings)
    run_settings.write(found, run.folder)


async def _execute(run: Run, settings: RunSettings, words: list[str], deadline: float) -> None:
    """Run tools/train_net.py in a subprocess and wait for it; its output is added to output.log.

    Prints one line with the kind of work and the path of output.log; then, every :data:`PROGRESS`
    seconds, the last line of that log if it is new.

    launch.json is written to the run's folder before a training, which may be killed; after tests,
    the caller writes it. If the deadline has passed, nothing is started or written. On cancellation
    the subprocess is terminated.

    Args:
        run: the run, whose folder is made if missing.
        settings: those with which it is started.
        words: further options, such as --resume.
        deadline: when to stop, on the clock of ``time.monotonic``.

    Raises:
        Stopped: at the deadline; the subprocess is terminated.
        UserError, RunError: the subprocess failed; the message is its own, if it left one, with the
            path of output.log.
    """
    _check_time(deadline)
    options, log, failed = run.options, run.folder / "output.log", run.folder / run_settings.ERROR
    command = [sys.executable, "-m", "ilm_plugins", "train", "--config-file", run.cell.file]
    command += [] if options.num_gpus is None else ["--num-gpus", str(options.num_gpus)]
    command += ["--unsafe"] if options.unsafe else []
    data = run.root / "data" if options.miniature else options.data
    environment = run.framework.environment(data) if data else {}
    run.folder.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    work = "testing"
    if "--eval-only" not in words:
        _write_settings(run, settings)
        total, unit = run.length
        work = f"training {total} {unit}" + " on a few generated images" * options.miniature
    print(f"{run.name}: {work}; its log is {log}", flush=True)
    with log.open("ab") as output:
        shown = _last_line(log)
        process = subprocess.Popen(
            [*command, *words, *settings.overrides],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, ERROR_FILE: str(failed)},
            # A process group of its own, so that data loader processes are terminated with it.
            start_new_session=True,
        )
        try:
            pause = time.monotonic() + PROGRESS
            while process.poll() is None:
                _check_time(deadline)
                if time.monotonic() >= pause:
                    line, pause = _last_line(log), time.monotonic() + PROGRESS
                    if line != shown:
                        print(f"{run.name}: {line}", flush=True)
                    shown = line
                await asyncio.sleep(0.2)
        finally:
            await _terminate(process)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise RunError(f"ended by {name}; the cause may be lack of memory (see {log})")
    if process.returncode:
        kind = UserError if process.returncode == UserError.status else RunError
        error = read_error(failed) or kind(f"exit status {process.returncode}")
        raise type(error)(f"{error} (see {log})")


def _check_time(deadline: float) -> None:
    """Raise Stopped if the clock of ``time.monotonic`` has reached a deadline."""
    if time.monotonic() >= deadline:
        raise Stopped


def _last_line(log: Path) -> str:
    """Return the last line of a log with a letter, up to 200 characters; "" if there is none.

    It is looked for in the log's last 4 KiB.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((s.strip()[:200] for s in reversed(lines) if any(map(str.isalpha, s))), "")


async def _terminate(process: subprocess.Popen) -> None:
    """Terminate a process and its children: SIGTERM, then SIGKILL, up to 20 seconds each.

    The process must lead a process group of its own; SIGKILL is sent to what is left of the group,
    even if the process has ended. A process that survives both is no error.
    """
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        patience = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < patience:
            await asyncio.sleep(0.1)
