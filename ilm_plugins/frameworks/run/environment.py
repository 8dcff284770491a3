"""Commit, versions and device, as records and bug reports name them."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torch

from ...version import __version__

ROOT = Path(__file__).parents[3]
FRAMEWORKS = ("detectron2", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")


def commit() -> str | None:
    """The checkout's commit, 12 hexadecimal digits and "+changes" if any; None without git."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+changes"]
    done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True)
    return done.stdout.strip() or None


def processor() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text() if info.is_file() else "")
    return match[1].strip() if match else platform.processor() or platform.machine()


def versions(packages: Iterable[str] = FRAMEWORKS) -> dict[str, str]:
    """Name -> version of Python, this package, torch and the packages that are imported."""
    names = _distributions()
    imported = [name for name in packages if name in sys.modules and name in names]
    frameworks = {name: importlib.metadata.version(names[name][0]) for name in imported}
    python = platform.python_version()
    return {"Python": python, "ilm_plugins": __version__, "torch": torch.__version__, **frameworks}


@cache  # all of an environment's packages are searched
def _distributions() -> Mapping[str, list[str]]:
    """Package -> its distributions, which may have other names, such as mmcv-lite."""
    return importlib.metadata.packages_distributions()


def device(num_gpus: int) -> str:
    """The name of a run's device, such as "2 x NVIDIA H100" or "CPU, Intel Xeon"."""
    if num_gpus and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return f"{num_gpus} x {name}" if num_gpus > 1 else name
    return f"CPU, {processor()}"
