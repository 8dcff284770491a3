"""Records of runs, one JSON file each: begun by the training, completed here.

``frameworks.record`` says what a training writes. Reproduction adds these keys:

    table, cell     the row of a table
    figures         measure -> its value, for each that was measured
    recipe          epochs or iterations of the config as published; 0 if the row only tests
    differences     list of texts: how the run differs from the recipe, apart from its progress
    changes         key -> value of the user's overrides that change the experiment
    jpeg            whether the images were re-encoded as JPEG
    references      name of a trivial prediction -> measure -> value, to compare with; optional

A computed row has only table, cell, figures, versions and commit.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from ...frameworks.record import write
from . import registry
from .recipes import Recipe
from .registry import Cell

Record = dict[str, Any]


def complete(
    found: Record,
    cell: Cell,
    recipe: Recipe,
    *,
    changes: Record,
    miniature: bool = False,
    parent: Record | None = None,  # of the run whose checkpoint this one starts from or tests
) -> Record:
    """Return a training's record with the keys of reproduction, floats with six digits."""
    measures = {name: registry.measures()[name] for name in registry.tables()[cell.table].measures}
    # pix2pix's test also scores the mean training image.
    figures, mean = (
        {
            name: value
            for name, m in measures.items()
            if (value := m.read(found["metrics"].get(m.test, {}), prefix)) is not None
        }
        for prefix in ("", "mean_image/")
    )
    planned, length = (0, 0) if cell.tests else (found["planned"], recipe.length)
    trained = not cell.tests
    how = "shortened" if planned < length else "lengthened"
    compared = [
        (f"{how}: {{}} of {{}} {found['unit']}", planned, length),
        ("{} of {} images", trained and found["images"], trained and recipe.images),
        ("tested on {} of {} images", found.get("test images"), recipe.test_images),
        ("batches of {}, not {}", trained and found["batch"], trained and recipe.batch),
    ]
    differences = ["miniature"] if miniature else []
    differences += [
        text.format(ours, published)
        for text, ours, published in compared[: 1 if miniature else None]
        if None not in (ours, published) and ours != published
    ]
    if not miniature:
        differences += [f"changed: {key}={str(value)[:40]}" for key, value in changes.items()]
        if parent is not None and label(parent) != "full recipe":
            differences.append(f"from {parent['table']} {parent['cell']} ({label(parent)})")
    return rounded(
        {
            "table": cell.table,
            "cell": cell.name,
            **found,
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


def rounded(found: Record) -> Record:
    """Return a copy as JSON has it, with floats of six digits."""
    return json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.6g}"))


def label(found: Record) -> str:
    """Describe how a run differs from its recipe: "full recipe", "computed" or the differences."""
    if "run" not in found:
        return "computed"
    words = [*found["differences"]]
    if found["run"] < found["planned"] and "diverged" not in found:
        words.insert(0, f"unfinished: {found['run']} of {found['planned']} {found['unit']}")
    # A backbone may not have the figures of its table, such as mIoU.
    elif not found["figures"] and not found.get("metrics") and "diverged" not in found:
        words.append("no figure yet")
    return ", ".join(words) or "full recipe"


def is_full(found: Record) -> bool:
    """Whether a result may stand beside the paper's."""
    return label(found) in ("full recipe", "computed")


def converged(found: Record) -> bool:
    """Whether a run's loss stayed finite, and its first figure is not within 1 of chance."""
    table = registry.tables()[found["table"]]
    figure = found["figures"].get(table.measures[0])
    guessed = None not in (table.chance, figure) and abs(figure - table.chance) < 1
    return "diverged" not in found and not guessed


def read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8"))


def collect(found: Record, folder: Path) -> Path:
    """Save a record in a folder of records, in place of an earlier one of the same settings."""
    words = [found["table"], registry.tables()[found["table"]].cells[found["cell"]].folder.name]
    words += [f"seed{found['seed']}"] if "run" in found else []
    if found.get("differences") or found.get("changes"):
        settings = json.dumps([found["differences"], found["changes"], found["jpeg"]])
        words.append(hashlib.sha256(settings.encode()).hexdigest()[:8])
    path = folder / f"{'-'.join(words)}.json"
    write(path, found)
    return path
