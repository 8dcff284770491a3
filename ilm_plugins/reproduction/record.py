"""Records of runs, one JSON file each: begun by the training, completed here.

``frameworks.record`` says what a training writes. Reproduction adds these keys:

    table, cell     the row of a table
    figures         measure -> its value, for each that was measured
    recipe          epochs or iterations of the config as published; 0 if the row only tests
    differences     list of texts: how the run differs from the recipe, apart from its progress
    changes         key -> value of the user's overrides that change the experiment
    jpeg            whether the images were re-encoded as JPEG
    references      name of a trivial prediction -> measure -> value, to compare with; optional

A computed row has table, cell, figures, versions and commit alone.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import replacing
from . import registry
from .recipes import Recipe
from .registry import Cell, Measure


def complete(
    found: Mapping[str, Any],
    cell: Cell,
    recipe: Recipe,
    *,
    changes: Mapping[str, Any],
    miniature: bool = False,
    parent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a training's record with the keys of reproduction, floats with six digits.

    ``parent`` is the record of the run whose checkpoint this one starts from or tests.
    """
    measures = {name: registry.measures()[name] for name in registry.tables()[cell.table].measures}
    figures = _figures(measures, found["metrics"])
    # pix2pix's test also scores the mean training image.
    mean = _figures(measures, found["metrics"], "mean_image/")
    length = 0 if cell.tests else recipe.length
    result = {
        "table": cell.table,
        "cell": cell.name,
        **found,
        "config": cell.config,
        "recipe": length,
        "planned": 0 if cell.tests else found["planned"],
        "changes": changes,
        "differences": ["miniature"] if miniature else [],
        "jpeg": recipe.jpeg,
        "figures": figures,
    }
    if mean:
        result["references"] = {"mean training image": mean}
    if result["planned"] != length:
        how = "shortened" if result["planned"] < length else "lengthened"
        result["differences"].append(f"{how}: {result['planned']} of {length} {found['unit']}")
    if not miniature:
        result["differences"] += _differences(result, recipe, parent)
    return json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))


def _figures(
    measures: Mapping[str, Measure], metrics: Mapping[str, dict], prefix: str = ""
) -> dict[str, float]:
    """Return measure -> value, of the metrics whose names have a prefix."""
    found = {
        test: {name.removeprefix(prefix): v for name, v in of.items() if name.startswith(prefix)}
        for test, of in metrics.items()
    }
    figures = {name: m.read(found.get(m.test, {})) for name, m in measures.items()}
    return {name: value for name, value in figures.items() if value is not None}


def _differences(
    found: Mapping[str, Any], recipe: Recipe, parent: Mapping[str, Any] | None
) -> list[str]:
    """Describe other images, batches, settings and checkpoints than the recipe's."""
    words = []
    counted = [("", found["images"], recipe.images)] * bool(found["recipe"])
    counted.append(("tested on ", found.get("test images"), recipe.test_images))
    for what, images, of_recipe in counted:
        if None not in (images, of_recipe) and images != of_recipe:
            words.append(f"{what}{images} of {of_recipe} images")
    if found["recipe"] and found["batch"] != recipe.batch:
        words.append(f"batches of {found['batch']}, not {recipe.batch}")
    words += [f"changed: {key}={_abbreviated(value)}" for key, value in found["changes"].items()]
    if parent is not None and label(parent) != "full recipe":
        words.append(f"from {parent['table']} {parent['cell']} ({label(parent)})")
    return words


def _abbreviated(value: Any) -> str:
    """Return a setting's text, cut after 40 characters; of a list of dicts, the types."""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return "+".join(str(v.get("type")) for v in value)
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}..."


def label(found: Mapping[str, Any]) -> str:
    """Describe how a run differs from its recipe: "full recipe", "computed" or the differences.

    A training that diverged followed the recipe as far as it went.
    """
    if "run" not in found:
        return "computed"
    words = [*found["differences"]]
    if found["run"] < found["planned"] and "diverged" not in found:
        words.insert(0, f"unfinished: {found['run']} of {found['planned']} {found['unit']}")
    # A backbone may not have the figures of its table, such as mIoU.
    elif not found["figures"] and not found.get("metrics") and "diverged" not in found:
        words.append("no figure yet")
    return ", ".join(words) or "full recipe"


def is_full(found: Mapping[str, Any]) -> bool:
    """Whether a result may stand beside the paper's."""
    return label(found) in ("full recipe", "computed")


def converged(found: Mapping[str, Any]) -> bool:
    """Whether a run's loss stayed finite, and its first figure is not within 1 of chance."""
    table = registry.tables()[found["table"]]
    figure = found["figures"].get(table.measures[0])
    guessed = None not in (table.chance, figure) and abs(figure - table.chance) < 1
    return "diverged" not in found and not guessed


def describe(found: Mapping[str, Any]) -> str:
    """Return a record's figures and its label: "top-1 error 23.4 (full recipe)"."""
    figures = [f"{name} {value:.4g}" for name, value in found["figures"].items()]
    figures += ["did not converge"] * (not converged(found))
    return f"{', '.join(figures) or 'no figure'} ({label(found)})"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(found: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON atomically; each key, and each point of the curve, has a line."""
    lines = []
    for key, value in found.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "curve" and value:
            rows = ",\n  ".join(json.dumps(row) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def collect(found: Mapping[str, Any], folder: Path) -> Path:
    """Save a record in a folder of records, in place of an earlier one of the same settings."""
    cell = registry.tables()[found["table"]].cells[found["cell"]]
    words = [cell.table, cell.folder.name]
    words += [f"seed{found['seed']}"] if "run" in found else []
    if found.get("differences") or found.get("changes"):
        settings = json.dumps([found["differences"], found["changes"], found["jpeg"]])
        words.append(hashlib.sha256(settings.encode()).hexdigest()[:8])
    path = folder / f"{'-'.join(words)}.json"
    write(found, path)
    return path
