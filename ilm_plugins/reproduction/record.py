"""Records of runs: one JSON file each, with the settings, the curve and the paper's figures."""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..checkpoints import replacing
from ..cli import train_net
from ..errors import UserError
from ..frameworks import installed
from ..frameworks.run_summary import RunFolders, Test
from . import registry
from .launch import Launch
from .registry import ROOT, Cell

#: In the label of a run that is whole, and has not been tested.
NO_FIGURE = "no figure yet"
#: The label of a run of which nothing but a checkpoint is known.
NO_RECORD = "no record"
#: Characters of a record's name, but for ".json".
LONGEST = 150


def framework(config: str) -> RunFolders:
    """The module that knows a config's framework.

    Raises:
        UserError: the config is not there, or its framework is not installed.
    """
    file = str(ROOT / config)
    if not Path(file).is_file():
        raise UserError(f"{config} is not in {ROOT}; run this from a checkout of the project")
    name = train_net.framework_of(file)
    package = {"mmengine": "openmmlab"}.get(name, name)
    if not installed(name):
        raise UserError(f"{config} needs {name}, which is not installed; make install-{package}")
    return import_module(f"ilm_plugins.frameworks.{package}.run_folder")


def measures(cell: Cell) -> dict[str, registry.Measure]:
    """Name -> measure of a cell's table."""
    return {name: registry.measures()[name] for name in registry.tables()[cell.table].measures}


def tests(cell: Cell) -> list[Test]:
    """The tests that a cell's figures need, each by its options, and that its config supports."""
    wanted = dict.fromkeys(measure.options for measure in measures(cell).values())
    return framework(cell.config).tests(str(ROOT / cell.config), wanted)


def batch(cell: Cell, launch: Launch) -> tuple[int | None, int | None]:
    """Images of a run's batch over all processes, and of the recipe's; None of a test alone."""
    if cell.tests:
        return None, None
    overrides = [*cell.overrides, *launch.given]
    return framework(cell.config).batch(str(ROOT / cell.config), overrides, launch.processes)


def record(
    cell: Cell, folder: Path, launch: Launch, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The record of a run folder.

    Args:
        cell: that the run is of.
        folder: work_dir or OUTPUT_DIR of the run.
        launch: how it was started.
        before: the record of the run whose checkpoint it starts from or tests.

    Raises:
        UserError: the folder holds no run.
    """
    module, config = framework(cell.config), str(ROOT / cell.config)
    recipe, unit = (0, module.length(config)[1]) if cell.tests else module.length(config)
    planned = 0 if cell.tests else launch.length or recipe
    found = module.summary(config, folder, planned)
    chosen = measures(cell)
    figures = {name: m.read(found.metrics.get(m.options, {})) for name, m in chosen.items()}
    references = {
        what: {name: m.read(values) for name, m in chosen.items()}
        for what, values in found.references.items()
    }
    if cell.tests and before is None:
        other = registry.named(cell.tests)
        before = {"table": other.table, "cell": other.name, "label": NO_RECORD}
    needed = tests(cell)
    # A backbone's tests may give none of its table's figures.
    measured = bool(needed and {*needed} <= {*found.metrics})
    measured |= any(value is not None for value in figures.values())
    own, whole = batch(cell, launch)
    result = {
        "table": cell.table,
        "cell": cell.name,
        "config": cell.config,
        "label": "",
        "command": launch.command,
        "unit": unit,
        "run": found.run,
        "planned": planned,
        "recipe": recipe,
        "changes": launch.changes(module.HARMLESS),
        "seed": launch.seed,
        "miniature": launch.miniature,
        "images": found.images,
        "recipe images": found.recipe_images,
        "test images": found.test_images,
        "recipe test images": found.recipe_test_images,
        "batch": own,
        "recipe batch": whole,
        "packed": launch.packed,
        "curve": found.curve,
        "seconds": found.seconds,
        "tested": [*found.metrics],
        "checkpoint": found.checkpoint,
        "figures": {name: value for name, value in figures.items() if value is not None},
        "references": references,
        "device": launch.device,
        "torch": launch.versions.get("torch"),
        "versions": launch.versions,
        "commit": launch.commit,
    }
    result["label"] = label(result, before, measured)
    return {key: _rounded(value) for key, value in result.items()}


def label(
    found: Mapping[str, Any], before: Mapping[str, Any] | None = None, measured: bool = True
) -> str:
    """How a run differs from the full recipe; "full recipe" where it does not.

    Args:
        found: its record.
        before: the record of the run whose checkpoint it starts from or tests.
        measured: whether there is a figure, or no test left that could give one.
    """
    unit, run, planned, recipe = (found[key] for key in ("unit", "run", "planned", "recipe"))
    words = ["miniature"] if found["miniature"] else []
    if run < planned:
        words.append(f"unfinished: {run} of {planned} {unit}")
    if planned != recipe:
        how = "shortened" if planned < recipe else "lengthened"
        words.append(f"{how}: {planned} of {recipe} {unit}")
    if not found["miniature"]:
        words += _fewer("", found["images"], found["recipe images"])
        if measured:
            words += _fewer("tested on ", found["test images"], found["recipe test images"])
        if found["batch"] != found["recipe batch"]:
            words.append(f"batches of {found['batch']}, not {found['recipe batch']}")
        words += [f"changed: {key}={_short(value)}" for key, value in found["changes"].items()]
        if before is not None and before["label"] != "full recipe":
            words.append(f"from {before['table']} {before['cell']} ({before['label']})")
    words += [NO_FIGURE] * (not measured and run == planned)
    return ", ".join(words) or "full recipe"


def _fewer(what: str, images: int | None, whole: int | None) -> list[str]:
    """Words on images that are not as many as the recipe's."""
    known = images is not None and whole is not None
    return [f"{what}{images} of {whole} images"] if known and images != whole else []


def _short(value: Any) -> str:
    """A setting in a label; of hooks and the like, their types."""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return "+".join(str(v.get("type")) for v in value)
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}..."


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def read(path: Path) -> dict[str, Any]:
    """A record's file.

    Raises:
        UserError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        registry.tables()[found["table"]].cells[found["cell"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a run ({error!r}); remove it") from error
    return found


def write(found: dict[str, Any], path: Path) -> None:
    """Write a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(dumped(found).encode())


def dumped(found: dict[str, Any]) -> str:
    """A record as its file has it: an entry a line, and of a curve a point a line."""
    lines = []
    for key, value in found.items():
        text = json.dumps(value, ensure_ascii=False)
        if key == "curve" and value:
            rows = ",\n  ".join(json.dumps(row) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def collect(found: dict[str, Any], folder: Path) -> Path:
    """Put a record among those that are kept; an unfinished one of the same run gives way.

    Returns:
        Its file.

    Raises:
        UserError: there is one already of another run of the same cell, settings and seed.
    """
    for path in sorted(folder.glob("*.json")):
        old = read(path)
        keys = ("table", "cell", "seed", "planned", "changes")
        images = {old.get("images"), found.get("images")} - {None}
        same = all(old.get(key) == found.get(key) for key in keys) and len(images) < 2
        partial = "unfinished" in old["label"] or NO_FIGURE in old["label"]
        if same and partial and old["run"] <= found["run"]:
            path.unlink()
    path = folder / f"{_name(found)}.json"
    if path.is_file() and read(path).get("changes") != found.get("changes"):
        # Of settings that their labels do not tell apart.
        path = path.with_name(f"{path.stem}-{_digest(json.dumps(found['changes']))}.json")
    if path.is_file() and read(path)["curve"] != found["curve"]:
        raise UserError(
            f"{path} holds another run of {found['table']} {found['cell']}, seed {found['seed']}; "
            "run another seed, or remove that file"
        )
    write(found, path)
    return path


def _name(found: dict[str, Any]) -> str:
    cell = registry.tables()[found["table"]].cells[found["cell"]]
    words = [cell.table, cell.folder.name]
    words += [] if found["seed"] is None else [f"seed{found['seed']}"]
    words += [] if found["label"] in ("full recipe", "computed") else [found["label"]]
    whole = "-".join(words)
    name = re.sub(r"[^\w.+-]+", "-", whole).strip("-")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{_digest(whole)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
