"""A run's settings: ``launch.json``, which ``tools/reproduce.py run`` writes to its folder."""

import ast
import importlib.metadata
import json
import re
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
DEFAULT_WORK_DIR = Path("output/reproduce")
#: A command line argument KEY=VALUE, which overrides a setting of the config.
OVERRIDE = re.compile(r"\w+(\.\w+)*=")


@dataclass(frozen=True)
class RunSettings:
    """How a run was started; the attributes are the keys of ``launch.json``.

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

    def comparable(self, besides: Sequence[str] = ()) -> list[str]:
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


def write(settings: RunSettings, folder: Path) -> None:
    """Write settings to ``launch.json`` in a run's folder, which must exist."""
    text = json.dumps(asdict(settings), indent=1, ensure_ascii=False)
    with replacing(folder / FILE) as file:
        file.write(f"{text}\n".encode())


def read(folder: Path) -> RunSettings | None:
    """Read the settings of the run in a folder from ``launch.json``.

    Returns:
        The settings; None if the folder, which may be missing, has no such file.

    Raises:
        UserError: the file is not valid JSON, or its keys are not those of :class:`RunSettings`.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return RunSettings(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is cut short ({error}); remove it, or give another --work-dir"
        ) from error


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
