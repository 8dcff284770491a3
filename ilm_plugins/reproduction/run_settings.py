"""A run's settings: ``launch.json``, which ``tools/reproduce.py run`` writes to its folder."""

import ast
import importlib.metadata
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
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
        commit: this project's commit; if the run was resumed at other commits, all of them,
            separated by ", ".
        versions: package -> version.
        device: name of the CPU, or number and name of the GPUs; if it was resumed on other ones,
            all of them, separated by ", then ".
    """

    command: str
    overrides: list[str]
    given: list[str] = field(default_factory=list)
    length: int | None = None
    seed: int = 0
    processes: int = 1
    miniature: bool = False
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None

    @property
    def packed(self) -> bool:
        """Whether the images came from packed archives of re-encoded JPEG files."""
        return any("PackedImages" in word for word in self.overrides)

    @property
    def augments_batches(self) -> bool:
        """Whether whole batches were augmented, by the option --augment-batches."""
        return any("CropFlipPreprocessor" in word for word in self.overrides)

    def after(self, earlier: "RunSettings") -> "RunSettings":
        """Return these settings with the commits and devices of an earlier start before theirs."""
        return replace(
            self,
            commit=_joined(", ", earlier.commit, self.commit),
            device=_joined(", then ", earlier.device, self.device),
        )

    def changes(self, harmless: re.Pattern[str]) -> dict[str, Any]:
        """Return key -> parsed value of each override that the user gave.

        Keys that ``harmless`` matches in full, such as logging intervals, are left out.
        """
        pairs = (word.split("=", 1) for word in self.given)
        return {key: _parse_value(word) for key, word in pairs if not harmless.fullmatch(key)}


def _joined(separator: str, earlier: str | None, new: str | None) -> str | None:
    """Append ``new`` to the texts in ``earlier`` unless it is among them; None if both are empty.

    ``separator`` is between the texts.
    """
    texts = [*(earlier or "").split(separator), new]
    return separator.join(dict.fromkeys(filter(None, texts))) or None


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
        The settings; None if the folder, which may be missing, has no such file. Keys that
        :class:`RunSettings` does not have, as other versions write them, are ignored.

    Raises:
        UserError: the file is not valid JSON, or lacks keys.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        known = {f.name for f in fields(RunSettings)}
        return RunSettings(**{key: value for key, value in saved.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} has no settings of a run ({error}); give another --work-dir"
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
