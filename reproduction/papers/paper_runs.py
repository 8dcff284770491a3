"""Rows of the papers' tables as comparisons: rows that differ only in their norm share one.

The runs of a row are in WORK_DIR/CONFIG/NORM/seedN; the config that they were given is beside
WORK_DIR/CONFIG.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ilm_plugins.comparison import ConfigSource, Plan
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks import (
    AS_IS,
    OpenConfig,
    Registrations,
    is_complete_record,
    open_config,
    read_record,
)

from . import published
from .options import Options
from .published import Cell
from .recipes import Recipe, as_words, read_from, recipe_of, save, shorten


@dataclass(frozen=True)
class PaperComparison:
    """A comparison that trains rows of one config, and what the config publishes."""

    plan: Plan
    #: Norm of the comparison -> row.
    cells: Mapping[str, Cell]
    recipe: Recipe
    overrides: Sequence[str]

    def lines(self) -> list[str]:
        """Return a line for each row: its figures, the paper's, and how its runs differ."""
        lines = []
        for norm, cell in self.cells.items():
            table = published.tables()[cell.table]
            found = (read_record(self.plan.folder(norm, seed)) for seed in self.plan.seeds)
            records = [one for one in found if is_complete_record(one)]
            if not records:
                lines.append(f"{cell.id}: no result")
                continue
            ours = []
            for name in table.measures:
                measure = published.measures()[name]
                values = [measure.read(r["metrics"].get(measure.test, {})) for r in records]
                known = [value for value in values if value is not None]
                ours.append(fmean(known) if known else None)
            texts = zip(table.measures, table.texts(ours), table.texts(cell.paper), strict=True)
            figures = ", ".join(f"{name} {our} (paper {paper})" for name, our, paper in texts)
            label = differences(records[0], self.recipe, self.overrides)
            lines.append(f"{cell.id}: {figures}; {label}")
        return lines


def comparisons(cells: Iterable[Cell], options: Options) -> Iterator[PaperComparison]:
    """Yield the comparison of each config of rows without an :func:`obstacle`."""
    groups = defaultdict(dict)
    for cell in cells:
        key = cell.config, tuple(cell.at), tuple(cell.overrides), tuple(cell.imports)
        groups[key][cell.norm or AS_IS] = cell
    for (config, at, overrides, imports), rows in groups.items():
        row = _open(config, overrides)
        recipe = recipe_of(row, published.images())
        if options.data:
            recipe.jpeg = read_from(row, options.data)
            # detectron2 reads its datasets from the folder in this variable.
            os.environ["DETECTRON2_DATASETS"] = str(options.data.absolute())
        if (length := _length(recipe, options)) != recipe.length:
            shorten(row, length)
        name = "-".join([Path(config).stem, *overrides])
        folder = options.work_dir / re.sub(r"[^\w.=,+]+", "-", name)
        path = str(save(row, folder))
        source = ConfigSource(
            config=path,
            at=at,
            overrides=as_words(path, options.overrides),
            num_gpus=options.num_gpus,
            registrations=Registrations(imports),
            unsafe=options.unsafe,
        )
        plan = Plan(source, tuple(rows), options.seeds, output=folder)
        yield PaperComparison(plan, rows, recipe, source.overrides)


def obstacle(cell: Cell, options: Options) -> str | None:
    """Return why a row needs another row's checkpoint, and what to give; None if it does not."""
    path = published.ROOT / str(cell.config)
    if cell.tests:
        return (
            f"{cell.id} only tests the model of {cell.tests}; run that row, then python -m "
            f"ilm_plugins train --eval-only --config-file {path} with its checkpoint"
        )
    key = "MODEL.WEIGHTS" if path.suffix == ".yaml" else "model.backbone.init_cfg.checkpoint"
    if cell.starts_from and not any(one.startswith(f"{key}=") for one in options.overrides):
        return f"{cell.id} starts from the checkpoint of {cell.starts_from}; give {key}=FILE"
    return None


def open_row(cell: Cell) -> OpenConfig:
    """Open the config of a row, with its norm; UserError if its framework is not installed."""
    row = _open(cell.config, cell.overrides)
    if not cell.norm:
        return row
    path = str(published.ROOT / cell.config)
    overrides = [*as_words(path, cell.overrides), *row.with_norm(cell.norm, cell.at)]
    return open_config(path, overrides)


def _open(config: str, overrides: Iterable[str]) -> OpenConfig:
    path = str(published.ROOT / config)
    return open_config(path, as_words(path, overrides))


def differences(record: Mapping[str, Any], recipe: Recipe, overrides: Iterable[str]) -> str:
    """Describe how a training differs from its recipe: "full recipe", or all differences."""
    how = "shortened" if record["planned"] < recipe.length else "lengthened"
    # Texts, each with its value in this run and in the recipe.
    compared = (
        (f"{how}: {{}} of {{}} {record['unit']}", record["planned"], recipe.length),
        ("{} of {} images", record["images"], recipe.images),
        ("tested on {} of {} images", record.get("test images"), recipe.test_images),
        ("batches of {}, not {}", record["batch"], recipe.batch),
    )
    texts = [
        text.format(ours, theirs)
        for text, ours, theirs in compared
        if None not in (ours, theirs) and ours != theirs
    ]
    if recipe.jpeg:
        texts.append("images re-encoded as JPEG")
    if overrides := " ".join(overrides):
        texts.append(f"changed: {overrides}")
    return ", ".join(texts) or "full recipe"


def _length(recipe: Recipe, options: Options) -> int:
    """Return the length of the training; UserError for a length in the other unit."""
    other = "epochs" if recipe.unit == "iterations" else "iterations"
    if getattr(options, other):
        raise UserError(f"--{other}: the config counts {recipe.unit}; give --{recipe.unit} N")
    return getattr(options, recipe.unit) or recipe.length
