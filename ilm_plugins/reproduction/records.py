"""Records of runs: what was run, on what, and what it came to; one JSON file each."""

import hashlib
import json
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ..checkpoints import replacing
from ..errors import UserError
from ..integrations import installed, training
from ..integrations.reading import Reading
from . import registry
from .registry import ROOT, Cell

#: In the label of a run that is whole, and has not been tested.
NO_FIGURE = "no figure yet"
#: The label of a run of which nothing but a checkpoint is known.
NO_RECORD = "no record"
#: Characters of a record's name, but for ".json".
LONGEST = 150


def framework(config: str) -> ModuleType:
    """The module that knows a config's framework.

    Raises:
        UserError: the config is not there, or its framework is not installed.
    """
    file = str(ROOT / config)
    if not Path(file).is_file():
        raise UserError(f"{config} is not in {ROOT}; run this from a checkout of the project")
    name = training.framework_of(file)
    package = {"mmengine": "openmmlab"}.get(name, name)
    if not installed(name):
        raise UserError(f"{config} needs {name}, which is not installed; make install-{package}")
    return import_module(f"ilm_plugins.integrations.{package}.runs")


def measures(cell: Cell) -> dict[str, registry.Measure]:
    """Name -> measure of a cell's table."""
    return {name: registry.measures()[name] for name in registry.tables()[cell.table].measures}


def tests(cell: Cell) -> list[tuple[str, ...]]:
    """The tests that a cell's figures need, each by its options, and that its config supports."""
    wanted = dict.fromkeys(measure.options for measure in measures(cell).values())
    return framework(cell.config).tests(str(ROOT / cell.config), wanted)


def record(
    cell: Cell,
    folder: Path,
    origin: Mapping[str, str] = MappingProxyType({}),
    before: Mapping[str, Any] | None = None,
    miniature: bool = False,
) -> dict[str, Any]:
    """What a folder of a run of tools/train_net.py holds.

    Args:
        cell: that it is a run of.
        folder: its work_dir or OUTPUT_DIR.
        origin: where it was run and how, as far as that is known: the ``command``, else told from
            what its config changes; the ``commit`` of this project; the ``device``, where the log
            names no GPU; ``torch``, where the log does not name its version.
        before: the record of the run whose checkpoint it starts from or tests.
        miniature: whether it is one.

    Raises:
        UserError: the folder has no run, or a training where the cell only tests.
    """
    module = framework(cell.config)
    found = module.read(str(ROOT / cell.config), folder)
    chosen = measures(cell)
    figures = {name: m.read(found.metrics.get(m.options, {})) for name, m in chosen.items()}
    references = {
        what: {name: m.read(values) for name, m in chosen.items()}
        for what, values in found.references.items()
    }
    if before is not None:
        found.changes.pop(module.PRETRAINED, None)
    elif cell.tests:
        other = registry.named(cell.tests)
        before = {"table": other.table, "cell": other.name, "label": NO_RECORD}
    if found.checkpoint and not cell.tests:
        # Nobody knows how that was trained.
        found.changes["load_from"] = found.checkpoint
    needed = tests(cell)
    # A backbone's tests may give none of its table's figures.
    measured = bool(needed and {*needed} <= {*found.tested})
    measured |= any(value is not None for value in figures.values())
    torch = re.search(r"^\W*PyTorch:? +([\w.+]+)", found.log, re.MULTILINE)
    result = {
        "table": cell.table,
        "cell": cell.name,
        "config": cell.config,
        "label": label(found, miniature, before, measured),
        "command": origin.get("command") or spelled(cell.config, found.overrides),
        "unit": found.unit,
        "run": found.run,
        "planned": found.planned,
        "recipe": found.recipe,
        "changes": found.changes,
        "seed": found.seed,
        "images": found.images,
        "recipe images": found.recipe_images,
        "test images": found.test_images,
        "recipe test images": found.recipe_test_images,
        "batches": found.batches,
        "recipe batch": found.recipe_batch,
        "packed": found.packed,
        "curve": found.curve,
        "seconds": found.seconds,
        "tested": found.tested,
        "checkpoint": found.checkpoint,
        "figures": {name: value for name, value in figures.items() if value is not None},
        "references": references,
        "device": gpus(found.log) or origin.get("device") or "CPU",
        "torch": torch[1] if torch else origin.get("torch"),
        "commit": origin.get("commit"),
    }
    return {key: _rounded(value) for key, value in result.items()}


def label(
    found: Reading,
    miniature: bool = False,
    before: Mapping[str, Any] | None = None,
    measured: bool = True,
) -> str:
    """How a run differs from the full recipe; "full recipe" where it does not.

    Args:
        found: what a framework's ``read`` gives.
        miniature: whether it is one.
        before: the record of the run whose checkpoint it starts from or tests.
        measured: whether there is a figure, or no test left that could give one.
    """
    unit, run, planned, recipe = found.unit, found.run, found.planned, found.recipe
    words = ["miniature"] if miniature else []
    if run < planned:
        words.append(f"unfinished: {run} of {planned} {unit}")
    if planned != recipe:
        how = "shortened" if planned < recipe else "lengthened"
        words.append(f"{how}: {planned} of {recipe} {unit}")
    if not miniature:
        words += _fewer("", found.images, found.recipe_images)
        if measured:
            words += _fewer("tested on ", found.test_images, found.recipe_test_images)
        others = [str(n) for n in found.batches if n != found.recipe_batch]
        words += [f"batches of {', '.join(others)}, not {found.recipe_batch}"] * bool(others)
        words += [f"changed: {key}={_short(value)}" for key, value in found.changes.items()]
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


def spelled(config: str, overrides: list[str]) -> str:
    """A command of tools/train_net.py as one types it."""
    return f"python tools/train_net.py --config-file {shlex.join([config, *overrides])}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def gpus(log: str) -> str | None:
    """The GPUs that a framework's log names."""
    match = re.search(r"^\W*GPU (0[\d,]*):?\s+([^\n(]+)", log, re.MULTILINE)
    if match is None:
        return None
    count = match[1].count(",") + 1
    return f"{count} x {match[2].strip()}" if count > 1 else match[2].strip()


def cpu() -> str:
    """This machine's processor."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    match = re.search(r"model name\s*:\s*(.+)", text)
    return f"CPU, {match[1].strip() if match else platform.processor() or platform.machine()}"


def commit() -> str | None:
    """This checkout's commit, "+changes" where files differ from it; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    dirty = git("status", "--porcelain", "--untracked-files=no")
    return head + "+changes" * bool(dirty) if head else None


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
