"""Records of runs: one JSON file for each run, with its settings, training curve and figures.

A figure is a number that a paper's table gives, here measured on a run, such as "top-1 error".
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..checkpoints import replacing
from ..cli import train_net
from ..errors import DivergedError, UserError, missing, read_error
from ..frameworks import installed
from ..frameworks.run_summary import RunFolders, Test
from . import registry
from .registry import ROOT, Cell
from .run_settings import ERROR, RunSettings

#: In the label of a run that has finished training but has not been tested.
NO_FIGURE = "no figure yet"
#: Largest number of characters in the name of a record's file, without ".json".
LONGEST = 150


def framework(cell: Cell) -> RunFolders:
    """Import the module for configs and run folders of the framework of a cell's config.

    Args:
        cell: a cell with a config; others raise TypeError.

    Returns:
        ``ilm_plugins.frameworks.{openmmlab,detectron2}.run_folder``.

    Raises:
        UserError: the config's file is missing, or its framework is not installed.
    """
    config = cell.config
    if not Path(cell.file).is_file():
        raise UserError(f"{config} is not in {ROOT}; install ilm_plugins again")
    name = train_net.framework_of(cell.file)
    package = train_net.PACKAGES[name]
    if not installed(package):
        raise missing(config, package)
    return import_module(f"ilm_plugins.frameworks.{name}.run_folder")


def measures(cell: Cell) -> dict[str, registry.Measure]:
    """Return name -> measure for the columns of a cell's table, in order."""
    return {name: registry.measures()[name] for name in registry.tables()[cell.table].measures}


def tests(cell: Cell) -> list[Test]:
    """List the tests that give a cell's figures and that its config supports.

    Tests that a training makes itself, as detectron2's does, are left out.

    Returns:
        For each test, its options of tools/train_net.py; () is a plain test.

    Raises:
        UserError: see :func:`framework`.
    """
    wanted = dict.fromkeys(measure.options for measure in measures(cell).values())
    return framework(cell).tests(cell.file, wanted)


def batch(cell: Cell, settings: RunSettings) -> tuple[int | None, int | None]:
    """Return the batch size of a run and that of its recipe, in images over all processes.

    The recipe is the config as published. Returns (None, None) for a cell that only tests. Of
    ``settings``, the user's overrides and the number of processes are read.

    Raises:
        UserError: see :func:`framework`.
    """
    if cell.tests:
        return None, None
    overrides = [*cell.overrides, *settings.given]
    return framework(cell).batch(cell.file, overrides, settings.processes)


def build(
    cell: Cell,
    folder: Path,
    settings: RunSettings,
    parent_record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the record of a run from the files in its folder; nothing is written.

    Args:
        cell: the table row that the run belongs to; it must have a config.
        folder: the run's output folder (MMEngine's work_dir, detectron2's OUTPUT_DIR).
        settings: how the run was started.
        parent_record: the record of the run whose checkpoint this one starts from or tests, for
            the label; None if there is none. Its table, cell and label are read.

    Returns:
        The record, a JSON-ready dict; floats have six significant digits. Its "figures" lack the
        measures that have no result yet. Only if an infinite or NaN loss ended the training, it has
        "diverged", the text of that error.

    Raises:
        UserError: the folder holds no run; see also :func:`framework`.
    """
    module, chosen = framework(cell), measures(cell)
    recipe, unit = module.length(cell.file)
    recipe = 0 if cell.tests else recipe
    planned = 0 if cell.tests else settings.length or recipe
    found = module.summary(cell.file, folder, planned)
    figures = {name: m.read(found.metrics.get(m.options, {})) for name, m in chosen.items()}
    references = {
        what: {name: m.read(values) for name, m in chosen.items()}
        for what, values in found.references.items()
    }
    needed = tests(cell)
    # The tests of a backbone may not give the figures of its table.
    measured = bool(needed and {*needed} <= {*found.metrics})
    measured |= any(value is not None for value in figures.values())
    batch_size, recipe_batch_size = batch(cell, settings)
    result = {
        "table": cell.table,
        "cell": cell.name,
        "config": cell.config,
        "label": "",
        "command": settings.command,
        "unit": unit,
        "run": found.run,
        "planned": planned,
        "recipe": recipe,
        "changes": settings.changes(module.HARMLESS),
        "seed": settings.seed,
        "miniature": settings.miniature,
        "images": found.images,
        "recipe images": found.recipe_images,
        "test images": found.test_images,
        "recipe test images": found.recipe_test_images,
        "batch": batch_size,
        "recipe batch": recipe_batch_size,
        "packed": settings.packed,
        "curve": found.curve,
        "seconds": found.seconds,
        "figures": {name: value for name, value in figures.items() if value is not None},
        "references": references,
        "device": settings.device,
        "versions": settings.versions,
        "commit": settings.commit,
    }
    error = read_error(folder / ERROR)
    if isinstance(error, DivergedError):
        result["diverged"] = str(error).partition(";")[0]  # without the advice
    result["label"] = label(result, parent_record, measured)
    # As JSON keeps it, with rounded floats.
    return json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.6g}"))


def label(
    result: Mapping[str, Any],
    parent_record: Mapping[str, Any] | None = None,
    measured: bool = True,
) -> str:
    """Describe how a run differs from the full recipe (the config as published), or "full recipe".

    Args:
        result: the record of the run; its "label" is not read.
        parent_record: the record of the run whose checkpoint this one starts from or tests; its
            label is repeated unless it is "full recipe".
        measured: whether the run has a figure, or has made all tests of :func:`tests`, of which
            there is at least one. If not, a complete run is labelled :data:`NO_FIGURE`.

    Returns:
        The differences, separated by ", ", such as "shortened: 10 of 90 epochs". A training that
        diverged followed the recipe as far as it went, so that is not listed.
    """
    unit, run, planned, recipe = (result[key] for key in ("unit", "run", "planned", "recipe"))
    words = ["miniature"] if result["miniature"] else []
    if run < planned and "diverged" not in result:
        words.append(f"unfinished: {run} of {planned} {unit}")
    if planned != recipe:
        how = "shortened" if planned < recipe else "lengthened"
        words.append(f"{how}: {planned} of {recipe} {unit}")
    if not result["miniature"]:
        words += _image_count_note("", result["images"], result["recipe images"])
        if measured:
            words += _image_count_note(
                "tested on ", result["test images"], result["recipe test images"]
            )
        if result["batch"] != result["recipe batch"]:
            words.append(f"batches of {result['batch']}, not {result['recipe batch']}")
        words += [
            f"changed: {key}={_abbreviated(value)}" for key, value in result["changes"].items()
        ]
        if parent_record is not None and parent_record["label"] != "full recipe":
            parent = f"{parent_record['table']} {parent_record['cell']}"
            words.append(f"from {parent} ({parent_record['label']})")
    words += [NO_FIGURE] * (not measured and run == planned)
    return ", ".join(words) or "full recipe"


def _image_count_note(what: str, images: int | None, recipe_images: int | None) -> list[str]:
    """Note, in a list of at most one, that the number of images differs from the recipe's."""
    if None in (images, recipe_images) or images == recipe_images:
        return []
    return [f"{what}{images} of {recipe_images} images"]


def _abbreviated(value: Any) -> str:
    """Return a setting's text for a label, cut after 40 characters; of a list of dicts, the types.

    Types are the values of "type" in the dicts, joined by "+".
    """
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return "+".join(str(v.get("type")) for v in value)
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}..."


def converged(result: Mapping[str, Any]) -> bool:
    """Whether a run's loss stayed finite, and its first figure is not within 1 of chance.

    ``chance`` of the table is used, which most tables lack.
    """
    table = registry.tables()[result["table"]]
    figure = result["figures"].get(table.measures[0])
    guessed = None not in (table.chance, figure) and abs(figure - table.chance) < 1
    return "diverged" not in result and not guessed


def describe(result: Mapping[str, Any]) -> str:
    """Return a record's figures and its label: "top-1 error 23.4 (full recipe)"."""
    figures = [f"{name} {value:.4g}" for name, value in result["figures"].items()]
    figures += ["did not converge"] * (not converged(result))
    return f"{', '.join(figures) or 'no figure'} ({result['label']})"


def read(path: Path) -> dict[str, Any]:
    """Read a record from its file, whose path is in the error messages.

    Raises:
        UserError: the file is not JSON, or names no known table and cell.
        OSError: the file is missing or unreadable.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        registry.tables()[found["table"]].cells[found["cell"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a run ({error!r}); remove it") from error
    return found


def write(result: dict[str, Any], path: Path) -> None:
    """Write a record to a JSON file atomically, replacing an earlier one; make its folder.

    Raises:
        RunError: the file cannot be written.
        OSError: the folder cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(to_json(result).encode())


def to_json(result: dict[str, Any]) -> str:
    """Return a record as JSON text; each key, and each point of the curve, has a line."""
    lines = []
    for key, value in result.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "curve" and value:
            rows = ",\n  ".join(json.dumps(row) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def settings(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return a record's settings, which are the same in all runs that may be averaged.

    Returns:
        The changed settings as JSON, which the label may abbreviate; and "packed" if the images
        were re-encoded, otherwise "".
    """
    changes = json.dumps(found.get("changes"), sort_keys=True)
    return changes, "packed" if found.get("packed") else ""


def collect(result: dict[str, Any], folder: Path) -> Path:
    """Save a record in the folder of collected records.

    Unfinished, untested or diverged records of the same cell, seed, planned length, settings and
    number of images (if known) are removed if they trained for at most as many epochs or iterations
    as this one. A record of the same run, that is with the same curve, is replaced.

    Args:
        result: the record.
        folder: the folder, usually reports/records; it is made if missing.

    Returns:
        The file written; table, cell, seed and label make its name.

    Raises:
        UserError: the folder has a record with the same cell, seed, label and settings but another
            curve, so of another run; or a JSON file in it is not a valid record.
        RunError: the file cannot be written.
    """
    superseded = []
    for path in sorted(folder.glob("*.json")):
        old = read(path)
        keys = ("table", "cell", "seed", "planned")
        images = {old.get("images"), result.get("images")} - {None}
        same = all(old.get(key) == result.get(key) for key in keys) and len(images) < 2
        same &= settings(old) == settings(result)
        partial = "unfinished" in old["label"] or NO_FIGURE in old["label"] or "diverged" in old
        if same and partial and old["run"] <= result["run"]:
            superseded.append(path)
    path = folder / f"{_file_stem(result)}.json"
    if path.is_file() and settings(read(path)) != settings(result):
        # Labels abbreviate settings, so that two runs can have the same label.
        digest = _digest(json.dumps(result["changes"]) + settings(result)[1])
        path = path.with_name(f"{path.stem}-{digest}.json")
    if path.is_file() and path not in superseded and read(path)["curve"] != result["curve"]:
        raise UserError(
            f"{path} holds another run of {result['table']} {result['cell']}, "
            f"seed {result['seed']}; run another seed, or remove that file"
        )
    for old_path in superseded:
        old_path.unlink()
    write(result, path)
    return path


def _file_stem(result: dict[str, Any]) -> str:
    """Return a record's file name without ".json": table, cell, seed, label; cut if long.

    The labels "full recipe" and "computed" are left out. A cut name has :data:`LONGEST` characters
    and ends in a hash of the whole.
    """
    cell = registry.tables()[result["table"]].cells[result["cell"]]
    words = [cell.table, cell.folder.name]
    words += [] if result["seed"] is None else [f"seed{result['seed']}"]
    words += [] if result["label"] in ("full recipe", "computed") else [result["label"]]
    full_name = "-".join(words)
    name = re.sub(r"[^\w.+-]+", "-", full_name).strip("-")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{_digest(full_name)}"


def _digest(text: str) -> str:
    """Return 8 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
