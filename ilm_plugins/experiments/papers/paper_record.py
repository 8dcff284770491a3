"""Records of runs, one JSON file each: begun by the training, completed here.

``frameworks.run_record`` says what a training writes. This package adds these keys:

    table, cell     the row of a table
    figures         measure -> its value, for each that was measured
    recipe          epochs or iterations of the config as published; 0 if the row only tests
    differences     list of texts: how the run differs from the recipe, apart from its progress
    changes         key -> value of the user's overrides that change the experiment
    jpeg            whether the images were re-encoded as JPEG
    references      name of a trivial prediction -> measure -> value, to compare with; optional

A computed row has only table, cell, figures, versions and commit.
"""

import json
from pathlib import Path
from typing import Any

from ...frameworks.variants import Recipe
from . import published
from .published import Cell

Record = dict[str, Any]


def complete(
    record: Record,
    cell: Cell,
    recipe: Recipe,
    *,
    changes: Record,
    miniature: bool = False,
    parent: Record | None = None,  # record of the run whose checkpoint this run uses
) -> Record:
    """Return a training's record with the keys of reproduction, floats with six digits."""
    measures = {
        name: published.measures()[name] for name in published.tables()[cell.table].measures
    }
    # pix2pix's test also scores the mean training image.
    figures, mean = (
        {
            name: value
            for name, m in measures.items()
            if (value := m.read(record["metrics"].get(m.test, {}), prefix)) is not None
        }
        for prefix in ("", "mean_image/")
    )
    planned, length = (0, 0) if cell.tests else (record["planned"], recipe.length)
    how = "shortened" if planned < length else "lengthened"
    # Texts, each with its value in this run and in the recipe.
    compared = [(f"{how}: {{}} of {{}} {record['unit']}", planned, length)]
    tested = ("tested on {} of {} images", record.get("test images"), recipe.test_images)
    if cell.tests and not miniature:
        compared.append(tested)
    elif not miniature:
        compared.append(("{} of {} images", record["images"], recipe.images))
        compared.append(tested)
        compared.append(("batches of {}, not {}", record["batch"], recipe.batch))
    differences = ["miniature"] if miniature else []
    differences += [
        text.format(ours, theirs)
        for text, ours, theirs in compared
        if None not in (ours, theirs) and ours != theirs
    ]
    if not miniature:
        differences += [f"changed: {key}={str(value)[:40]}" for key, value in changes.items()]
        if parent is not None and label(parent) != "full recipe":
            differences.append(f"from {parent['table']} {parent['cell']} ({label(parent)})")
    return rounded(
        {
            "table": cell.table,
            "cell": cell.name,
            **record,
            "config": cell.config,
            **({"norm": cell.norm, "at": cell.at} if cell.norm else {}),
            "recipe": length,
            "planned": planned,
            "changes": changes,
            "differences": differences,
            "jpeg": recipe.jpeg,
            "figures": figures,
            **({"references": {"mean training image": mean}} if mean else {}),
        }
    )


def rounded(record: Record) -> Record:
    """Return a copy as JSON has it, with floats of six digits."""
    return json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.6g}"))


def label(record: Record) -> str:
    """Describe how a run differs from its recipe: "full recipe", "computed" or the differences."""
    if "run" not in record:
        return "computed"
    texts = [*record["differences"]]
    if record["run"] < record["planned"] and "diverged" not in record:
        how = "stopped early" if "stopped early" in record else "unfinished"
        texts.insert(0, f"{how}: {record['run']} of {record['planned']} {record['unit']}")
    # A backbone may not have the figures of its table, such as mIoU.
    elif not record["figures"] and not record.get("metrics") and "diverged" not in record:
        texts.append("no figure yet")
    return ", ".join(texts) or "full recipe"


def learned(record: Record) -> bool:
    """Whether a run's loss stayed finite, and its first figure is one of a model that learned."""
    table = published.tables()[record["table"]]
    figure = record["figures"].get(table.measures[0])
    if "diverged" in record:
        return False
    if figure is None:
        return True
    is_chance = table.chance is not None and abs(figure - table.chance) < 1
    is_low = table.learned_from is not None and figure < table.learned_from
    return not is_chance and not is_low


def read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8"))
