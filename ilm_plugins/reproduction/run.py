"""Runs of cells: tools/train_net.py in subprocesses, gone on with until they are whole."""

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
#: Configs are programs; runs at once read theirs one after the other.
CONFIG_LOCK = threading.Lock()


@dataclass(frozen=True)
class Options:
    """What a user asks of all runs; see ``tools/reproduce.py run --help``."""

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
    """A cell and a seed."""

    cell: Cell
    seed: int
    options: Options

    @property
    def name(self) -> str:
        return f"{self.cell.id}, seed {self.seed}"

    @property
    def command(self) -> str:
        """That of tools/reproduce.py which runs it alone."""
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
        """The folder of all runs, or of all miniatures."""
        folder = self.options.work_dir
        return folder / "miniature" if self.options.miniature else folder

    @property
    def folder(self) -> Path:
        return self.root / self.cell.folder / f"seed{self.seed}"

    @property
    def length(self) -> tuple[int, str]:
        """How long it is to be; 0 for a test alone."""
        recipe, unit = framework(self.cell.config).length(str(ROOT / self.cell.config))
        if self.cell.tests:
            return 0, unit
        if self.options.miniature:
            return 2, unit
        own = self.options.length if self.options.unit == unit else None
        return own or recipe, unit

    @property
    def before(self) -> "Run | None":
        """That whose checkpoint it starts from or tests, by the same seed."""
        setting = framework(self.cell.config).PRETRAINED
        given = any(word.startswith(f"{setting}=") for word in self.options.overrides)
        starts_from = None if self.options.miniature or given else self.cell.starts_from
        other = self.cell.tests or starts_from
        if other is None:
            return None
        return Run(registry.home(registry.named(other)), self.seed, self.options)


class Stopped(Exception):
    """The time is up."""


def plan(cells: Sequence[Cell], options: Options) -> list[Run | Cell]:
    """What is to be run and computed for cells, each once.

    Raises:
        UserError: none can be.
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
    """Run and compute, and say a line on each; what a signal raises here stops all.

    Returns:
        The exit status: 0, or the highest of those that failed.

    Raises:
        UserError: nothing can be written where the runs are kept.
    """
    check_output(str(options.work_dir), "--work-dir")
    deadline = time.monotonic() + 60 * (options.minutes or math.inf)
    stop = threading.Event()
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            return max(pool.map(lambda one: _told(one, options, deadline, stop), planned))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _told(one: Run | Cell, options: Options, deadline: float, stop: threading.Event) -> int:
    """Run or compute one, and print a line on it."""
    name = one.id if isinstance(one, Cell) else one.name
    try:
        found = _computed(one, options) if isinstance(one, Cell) else _run(one, deadline, stop)
        print(f"{name}: {told(found)}", flush=True)
    except Stopped:
        print(f"{name}: {_so_far(one)}; run the same command to go on", flush=True)
    except Exception as error:
        line = explain(error)
        if isinstance(line, UnexpectedError):
            raise
        print(f"{name}: error: {line}", file=sys.stderr, flush=True)
        return line.status
    return 0


def told(found: dict) -> str:
    """A record's figures, in words."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found["figures"].items())
    return f"{figures or 'no figure'} ({found['label']})"


def _so_far(one: Run | Cell) -> str:
    if isinstance(one, Cell):
        return "not begun, time is up"
    (total, unit), config = one.length, one.cell.config
    done, _ = framework(config).progress(one.folder)
    return f"{'stopped' if one.folder.is_dir() else 'not begun'} at {done} of {total} {unit}"


def _computed(cell: Cell, options: Options) -> dict:
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


def _run(run: Run, deadline: float, stop: threading.Event) -> dict:
    """Train a run from where it is to its end, test and record it."""
    module = framework(run.cell.config)
    with CONFIG_LOCK:
        overrides, (total, _) = _overrides(run), run.length
        _same_settings(run, overrides)
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
                _note(run, overrides)
    except BaseException:
        with CONFIG_LOCK, suppress(UserError):
            _record(run)
        raise
    with CONFIG_LOCK:
        return _record(run)


def _record(run: Run) -> dict:
    """Write a run's record.

    Raises:
        UserError: there is nothing to record.
    """
    before = run.before
    if before is not None:
        try:
            before = _read(before)
        except UserError:
            # Its checkpoint may be all that is left of it.
            cell = before.cell
            before = {"table": cell.table, "cell": cell.name, "label": record.NO_RECORD}
    found = _read(run, before)
    record.write(found, run.folder / RECORD)
    return found


def _read(run: Run, before: dict | None = None) -> dict:
    """The record of what a run's folder holds.

    Raises:
        UserError: it holds none.
    """
    started = launch.read(run.folder)
    if started is None:
        raise UserError(f"{run.folder} has no {launch.FILE}, so no run of tools/reproduce.py")
    return record.record(run.cell, run.folder, started, before)


def _tests_to_do(run: Run, overrides: list[str]) -> list[tuple[str, ...]]:
    """Options of the tests that the table's measures need and that have not been made.

    Of a cell that only tests, those made under other settings do not count.
    """
    needed = record.tests(run.cell)
    if not needed:
        return []
    checkpoint = _checkpoint(run.before) if run.cell.tests else None
    if run.cell.tests:
        started = launch.read(run.folder)
        if started is None or _other_settings(run, started, overrides):
            return needed
    made = framework(run.cell.config).tests_made(run.folder, checkpoint)
    return [options for options in needed if options not in made]


def _overrides(run: Run) -> list[str]:
    """Those of tools/train_net.py for a run.

    Raises:
        UserError: what it starts from has not been trained, --epochs is given to what counts
            iterations, or the recipe's batches do not fit so many GPUs.
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
        words += uses(_checkpoint(run.before))
    if not (run.cell.tests or options.miniature):
        _check_batch(run)
    return words + module.spelled(options.overrides)


def _check_batch(run: Run) -> None:
    """Raise UserError unless the batch over all processes is the recipe's."""
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


def _checkpoint(run: Run) -> str:
    """That of another run, which is to be whole.

    Raises:
        UserError: it is not.
    """
    done, checkpoint = framework(run.cell.config).progress(run.folder)
    total, unit = run.length
    if done < total:
        raise UserError(
            f"needs the checkpoint of {run.name}, which is at {done} of {total} {unit} in "
            f"{run.folder}; run tools/reproduce.py run {run.cell.table} {run.cell.name!r} first"
        )
    return checkpoint


def _same_settings(run: Run, overrides: list[str]) -> None:
    """Raise UserError if a folder holds a run with other settings, or only its beginning."""
    begun, _ = framework(run.cell.config).progress(run.folder)
    if not begun:
        return
    started = launch.read(run.folder)
    if started is None:
        raise UserError(
            f"{run.folder} holds a run whose settings are unknown: no {launch.FILE}; "
            "give another --work-dir"
        )
    other = _other_settings(run, started, overrides)
    if other:
        raise UserError(
            f"{run.folder} was begun with other settings ({', '.join(other)}); give those that it "
            "was begun with, or another --work-dir"
        )


def _launch(run: Run, overrides: list[str]) -> Launch:
    """How a run is started now."""
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


def _other_settings(run: Run, started: Launch, overrides: list[str]) -> list[str]:
    """Overrides in which a run differs from how it was started before.

    A cell's own don't count: they were once lines of config files.
    """
    module, now = framework(run.cell.config), _launch(run, overrides)
    own = module.spelled(run.cell.overrides)
    before, after = started.settings(own), now.settings(own)
    other = sorted({*before} ^ {*after}) or [" ".join(before)] * (before != after)
    batches = {record.batch(run.cell, one) for one in (started, now)}
    return other + [f"--num-gpus {started.processes}"] * (len(batches) > 1)


def _note(run: Run, overrides: list[str]) -> None:
    """Write how a run is started into its folder; of several commits, all."""
    begun, _ = framework(run.cell.config).progress(run.folder)
    started = launch.read(run.folder) if begun else None
    commits = [*((started and started.commit) or "").split(", "), launch.commit()]
    packages = ("detectron2", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
    found = replace(
        _launch(run, overrides),
        commit=", ".join(dict.fromkeys(filter(None, commits))) or None,
        versions=launch.versions(*packages),
        device=launch.device(run.options.num_gpus),
    )
    launch.write(found, run.folder)


def _execute(
    run: Run, words: list[str], overrides: list[str], deadline: float, stop: threading.Event
) -> None:
    """Wait for a command of tools/train_net.py.

    Raises:
        Stopped: at the deadline, or when ``stop`` is set; the command is ended.
        UserError, RunError: it failed; the message is its own.
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
        # Before it begins, since it may be ended; tests are noted when they are made.
        with CONFIG_LOCK:
            _note(run, overrides)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, ERROR_FILE: str(failed)},
            # A group of its own, so that its loaders end with it.
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if stop.is_set() or time.monotonic() >= deadline:
                    raise Stopped
                time.sleep(0.2)
        finally:
            _end(process)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise RunError(f"ended by {name}; a process out of memory ends so, too (see {log})")
    if process.returncode:
        kind = UserError if process.returncode == UserError.status else RunError
        error = read_error(failed) or kind(f"exit status {process.returncode}")
        raise type(error)(f"{error} (see {log})")


def _end(process: subprocess.Popen) -> None:
    """End a process, and those that it started, which may outlive it."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
