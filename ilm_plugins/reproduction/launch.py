"""How a run was started: ``launch.json``, which ``tools/reproduce.py run`` writes to its folder."""

import argparse
import ast
import importlib.metadata
import json
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import replacing
from ..cli.environment import processor
from ..errors import UserError
from ..version import __version__

FILE = "launch.json"
#: File in a run's folder with the error that ended its last subprocess; see :func:`.read_error`.
ERROR = ".error"
#: Its name before 21 November 2026, with the keys command, settings, commit, torch, device.
OLD_FILE = "origin.json"
DEFAULT_WORK_DIR = Path("output/reproduce")
#: A command line argument KEY=VALUE, which overrides a setting of the config.
OVERRIDE = re.compile(r"\w+(\.\w+)*=")


@dataclass(frozen=True)
class Launch:
    """How a run was started.

    Attributes:
        command: the command of tools/reproduce.py that repeats the run.
        overrides: the config overrides that tools/train_net.py was given, in order.
        given: the KEY=VALUE overrides among them that the user gave.
        length: epochs or iterations of training; 0 if the run only tests a checkpoint, None for
            the config's own length.
        seed: random seed of the run.
        processes: number of processes, one for each GPU.
        miniature: whether the run is a short trial on a few generated images.
        work_dir: folder of all runs.
        commit: this project's commit; if the run was resumed at other commits, all of them,
            separated by ", ".
        versions: package -> version.
        device: name of the CPU, or number and name of the GPUs.
    """

    command: str
    overrides: list[str]
    given: list[str] = field(default_factory=list)
    length: int | None = None
    seed: int = 0
    processes: int = 1
    miniature: bool = False
    work_dir: str = str(DEFAULT_WORK_DIR)
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None

    def settings(self, besides: Sequence[str] = ()) -> list[str]:
        """Return the overrides by which two runs are compared, in order.

        Overrides in ``besides`` are left out. The path of ``work_dir`` becomes "WORK_DIR", so that
        runs in different folders compare equal.
        """
        root = re.compile(rf"(?<![\w./-]){re.escape(self.work_dir.rstrip('/'))}/")
        return [root.sub("WORK_DIR/", word) for word in self.overrides if word not in besides]

    def changes(self, harmless: re.Pattern[str]) -> dict[str, Any]:
        """Return key -> parsed value of each override that the user gave.

        Keys that ``harmless`` matches in full, such as logging intervals, are left out.
        """
        pairs = (word.split("=", 1) for word in self.given)
        return {key: _parse_value(word) for key, word in pairs if not harmless.fullmatch(key)}


def _parse_value(word: str) -> Any:
    """Parse an override's value as a Python literal, tuples as lists; other text stays a str."""
    with suppress(ValueError, SyntaxError):
        value = ast.literal_eval(word)
        return list(value) if isinstance(value, tuple) else value
    return word


def write(launch: Launch, folder: Path) -> None:
    """Write a launch to ``launch.json`` in a run's folder, which must exist."""
    text = json.dumps(asdict(launch), indent=1, ensure_ascii=False)
    with replacing(folder / FILE) as file:
        file.write(f"{text}\n".encode())


def read(folder: Path) -> Launch | None:
    """Read how the run in a folder was started, from ``launch.json`` or a former ``origin.json``.

    Returns:
        The launch; None if the folder, which may be missing, has neither file.

    Raises:
        UserError: the file is not valid JSON, or its keys are not those of a launch.
    """
    file = next((folder / name for name in (FILE, OLD_FILE) if (folder / name).is_file()), None)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if file.name == OLD_FILE:
            return _from_old_file(found, folder / "output.log")
        return Launch(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is cut short ({error}); remove it, or give another --work-dir"
        ) from error


def _from_old_file(found: dict[str, Any], log: Path) -> Launch:
    """Build a Launch from the content of a former ``origin.json``.

    Options are parsed from the command in it, and the GPUs from the run's log, if there is one.

    Args:
        found: the parsed JSON.
        log: path of the run's log, which may be missing; then the device is the file's.

    Raises:
        KeyError: the content lacks a key; see :data:`OLD_FILE`.
    """
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--seeds", type=int, default=0)
    p.add_argument("--epochs", "--iterations", type=int, dest="length")
    p.add_argument("--num-gpus", type=int)
    p.add_argument("--miniature", action="store_true")
    p.add_argument("--work-dir", default=str(DEFAULT_WORK_DIR))
    args, words = p.parse_known_args(shlex.split(found["command"]))
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    gpus = re.search(r"^\W*GPU (0[\d,]*):?\s+([^\n(]+)", text, re.MULTILINE)
    number = f"{gpus[1].count(',') + 1} x " * ("," in gpus[1]) if gpus else ""
    return Launch(
        command=found["command"],
        overrides=found["settings"],
        given=[word for word in words if OVERRIDE.match(word)],
        length=2 if args.miniature else args.length,
        seed=args.seeds,
        processes=args.num_gpus or 1,
        miniature=args.miniature,
        work_dir=args.work_dir,
        commit=found["commit"],
        versions={"torch": found["torch"]},
        device=f"{number}{gpus[2].strip()}" if gpus else found["device"],
    )


def versions(*packages: str) -> dict[str, str]:
    """Return name -> version of ilm_plugins, torch and the installed ones among ``packages``."""
    # A package's distribution may have another name, such as mmcv-lite.
    names = importlib.metadata.packages_distributions()
    found = {name: importlib.metadata.version(names[name][0]) for name in packages if name in names}
    return {"ilm_plugins": __version__, "torch": torch.__version__, **found}


def device(num_gpus: int | None) -> str:
    """Return the name of the device that a run uses on this machine, for its report.

    Args:
        num_gpus: number of GPUs of the run; 0 for the CPU, None for one GPU if there is any. It is
            not compared with the number of GPUs here.

    Returns:
        Such as "NVIDIA H100", "2 x NVIDIA H100" (the first GPU's name) or "CPU, Intel Xeon"; the
        CPU's also where CUDA is not available.
    """
    count = min(1, torch.cuda.device_count()) if num_gpus is None else num_gpus
    if count and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return f"{count} x {name}" if count > 1 else name
    return f"CPU, {processor()}"
