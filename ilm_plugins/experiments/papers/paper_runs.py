"""Runs of rows: the command train in a subprocess for each row and seed, and their records.

A run's folder is WORK_DIR/TABLE/ROW/seedN; the config that it was given is beside it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...frameworks import open_config, run_environment
from ...frameworks.folders import last_checkpoint
from ...frameworks.parent import command_line, ending_with_us
from ...frameworks.run_record import FILE, is_complete, read, write
from ...frameworks.variants import Recipe, Variants, as_words, variants
from . import paper_record, published
from .paper_record import Record
from .published import Cell
from .reproduce_options import Options

#: The override that names the checkpoint of a backbone.
PRETRAINED = "model.backbone.init_cfg.checkpoint="


def run_all(cells: Iterable[Cell], options: Options) -> int:
    """Train, test or compute rows, one after the other, and return the highest exit status."""
    statuses = [0]
    for cell in dict.fromkeys(cell.canonical for cell in cells):
        for seed in options.seeds if cell.config else (None,):
            name = cell.id if seed is None else f"{cell.id}, seed {seed}"
            try:
                result = compute(cell, options) if seed is None else train(cell, seed, options)
            except (UserError, subprocess.CalledProcessError) as error:
                print(f"{name}: error: {error}", file=sys.stderr, flush=True)
                statuses.append(2 if isinstance(error, UserError) else 1)
                continue
            results = [f"{measure} {value:.4g}" for measure, value in result["figures"].items()]
            if not paper_record.learned(result):
                results.append("did not learn")
            text = f"{', '.join(results) or 'no figure'} ({paper_record.label(result)})"
            print(f"{name}: {text}", flush=True)
    return max(statuses)


def compute(cell: Cell, options: Options) -> Record:
    """Compute a row that needs no training; write and return its record."""
    from . import computed

    result = paper_record.rounded(
        {
            "table": cell.table,
            "cell": cell.name,
            "figures": {name: float(value) for name, value in computed.compute(cell).items()},
            "versions": run_environment.versions(),
            "commit": run_environment.commit(),
        }
    )
    write(options.work_dir / cell.folder / FILE, result)
    return result


def train(cell: Cell, seed: int, options: Options) -> Record:
    """Train a row until it is complete and make missing tests; write and return the record."""
    row, folder = open_row(cell), options.folder(cell, seed)
    recipe, parent = row.recipe(published.images()), _parent(cell, seed, options)
    length = _prepare(cell, row, recipe, seed, options, parent)
    changes = paper_record.rounded(parsed(options.overrides))
    saved = read(folder) or {"run": 0, "metrics": {}}
    if saved["run"] and not cell.tests:
        # A training that was killed has no changes yet.
        begun = saved.get("changes", changes), saved["planned"]
        if begun != (changes, length):
            raise UserError(
                f"{folder} was begun with other settings: {begun[0]}, {begun[1]} {recipe.unit}; "
                "give the same, or another --work-dir"
            )
    measures = [published.measures()[name] for name in published.tables()[cell.table].measures]
    has_tta = row.config.get("tta_model") and row.config.get("tta_pipeline")
    tests = [test for test in dict.fromkeys(m.test for m in measures) if not test or has_tta]
    arguments = as_words(cell.config, options.overrides)
    try:
        if cell.tests:
            (folder / FILE).unlink(missing_ok=True)
            saved["metrics"] = {}
        # A training that was killed at its end may lack its last checkpoint, but has no test.
        elif not is_complete(saved) or not saved["metrics"]:
            print(f"{cell.id}, seed {seed}: {length} {recipe.unit} in {folder}", flush=True)
            _call(row.save(folder), ["--resume", *arguments], options)
            saved = read(folder)
        for test in tests:
            if test not in saved["metrics"]:
                flags = ["--eval-only"]
                if not cell.tests:
                    flags.append("--resume")
                if test:
                    flags.append("--tta")
                _call(row.save(folder), [*flags, *arguments], options)
    finally:
        if saved := read(folder):
            known = {"changes": changes, "miniature": options.miniature, "parent": parent}
            saved = paper_record.complete(saved, cell, recipe, **known)
            write(folder / FILE, saved)
    return saved


def _parent(cell: Cell, seed: int, options: Options) -> Record | None:
    """Return the record of the run whose checkpoint a row uses, or None."""
    given = any(override.startswith(PRETRAINED) for override in options.overrides)
    wanted = cell.tests or (None if given or options.miniature else cell.starts_from)
    if wanted is None:
        return None
    other = published.find_cell(wanted).canonical
    folder = options.folder(other, seed)
    parent = read(folder) or {}
    if "differences" not in parent or not is_complete(parent):
        raise UserError(
            f"needs the checkpoint of a complete run in {folder}; "
            f"reproduce run {other.table} {other.name!r} first"
        )
    return parent


def open_row(cell: Cell) -> Variants:
    """Open the config of a row; UserError if its framework is not installed."""
    path = str(published.ROOT / cell.config)
    overrides = as_words(path, cell.overrides)
    if cell.norm:
        overrides += variants(open_config(path, overrides)).with_norm(cell.norm, cell.at)
    return variants(open_config(path, overrides))


def parsed(overrides: Iterable[str]) -> dict[str, Any]:
    """Return key -> value of overrides KEY=VALUE: a Python literal, tuples as lists, or text."""
    values: dict[str, Any] = dict(override.split("=", 1) for override in overrides)
    for key, text in values.items():
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
            values[key] = list(value) if isinstance(value, tuple) else value
    return values


def _prepare(
    cell: Cell, row: Variants, recipe: Recipe, seed: int, options: Options, parent: Record | None
) -> int:
    """Change a row's config by the options; return the training's length, 0 for a test only."""
    row.change(folder=str(options.folder(cell, seed)), seed=seed)
    if recipe.unit == "epochs":
        row.config.default_hooks.checkpoint.interval = 1
    if options.data:
        recipe.jpeg = row.read_from(options.data)
    if parent:
        other = published.tables()[parent["table"]].cells[parent["cell"]]
        checkpoint = str(last_checkpoint(options.folder(other, seed)))
        if cell.tests:
            row.change(weights=checkpoint)
        else:
            row.start_from(checkpoint)
    if options.miniature:
        from . import miniature

        miniature.shrink(row, options.work_dir / "data")
    if cell.tests:
        return 0
    other = "epochs" if recipe.unit == "iterations" else "iterations"
    if getattr(options, other):
        raise UserError(f"--{other}: {cell.id} counts {recipe.unit}; give --{recipe.unit} N")
    length = 2 if options.miniature else getattr(options, recipe.unit) or recipe.length
    if length != recipe.length:
        row.shorten(length)
    return length


def _call(config: Path, arguments: Sequence[str], options: Options) -> None:
    """Run the command train on a config; an exception here, such as a signal's, kills it."""
    command = command_line(["train", "--config-file", str(config)])
    if options.num_gpus is not None:
        command += ["--num-gpus", str(options.num_gpus)]
    if options.unsafe:
        command.append("--unsafe")
    data = options.work_dir / "data" if options.miniature else options.data
    # detectron2 reads its datasets from the folder in this variable.
    folders = {"DETECTRON2_DATASETS": str(data.absolute())} if data else {}
    subprocess.run([*command, *arguments], env={**ending_with_us(), **folders}, check=True)
