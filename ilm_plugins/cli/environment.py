"""Report the environment, and which of this package's norms each framework knows."""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch
from torch import nn

from ..frameworks import installed
from ..layers import NORMS
from ..ops import cpu
from ..ops.backends import VARIABLE
from ..version import __version__

ROOT = Path(__file__).parents[2]
#: OpenMMLab's packages, under their import names.
OPENMMLAB = ("mmcv", "mmengine", "mmdet", "mmseg", "mmpretrain")
#: Package -> where its configs name norms.
SETTINGS = {
    "detectron2": "NORM in get_norm",
    "mmcv": "type in norm_cfg",
    "mmengine": "type in MODELS",
}


def report() -> str:
    """Return a text of one line a component, for bug reports; this imports all frameworks.

    They are the versions of this package, Python, torch (with CUDA and the GPUs), torchvision and
    Triton; the backend as its environment variable sets it, or "auto"; the C kernels; and the
    version of each framework, where detectron2's, mmcv's and MMEngine's lines also list those of
    this package's norms that they know.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(count)]
    cuda = f"{torch.version.cuda}, {', '.join(gpus)}" if gpus else "not available"
    lines = [
        f"ilm_plugins  {__version__}",
        f"python       {platform.python_version()}, {platform.platform()}",
        f"torch        {torch.__version__}, CUDA {cuda}",
        f"torchvision  {_version('torchvision')}",
        f"triton       {_version('triton')}",
        f"backend      {os.environ.get(VARIABLE) or 'auto'}",
        f"C kernels    {_describe_kernels()}",
        *(f"{package:12} {_describe_framework(package)}" for package in ("detectron2", *OPENMMLAB)),
    ]
    return "\n".join(lines)


def _describe_kernels() -> str:
    """Return the instruction set and the threading of the compiled C kernels, or "missing"."""
    if problem := cpu.load_problem():
        return f"missing: {problem}"
    threads = "torch's threads" if cpu.parallel_for() else "a single thread"
    return f"{cpu.instruction_set()}, {threads}"


def _version(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _describe_framework(package: str) -> str:
    """Return the version of a framework, with the keys that it resolves to this package's layers.

    The framework is imported. No error is raised: the text is "not installed" for a missing
    framework, and contains "cannot be used: REASON" if importing it or building a norm fails.

    Args:
        package: its import name; keys are listed for those in :data:`SETTINGS`.
    """
    if not installed(package):
        return "not installed"
    found = []
    try:
        found.append(importlib.import_module(package).__version__)
        if package in SETTINGS:
            keys = [key for key, layer in NORMS.items() if type(_build(package, key)) is layer]
            found.append(f"{SETTINGS[package]}: {', '.join(keys)}")
    except Exception as error:  # packages that do not fit each other raise what they like
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        found.append(f"cannot be used: {reason}")
    return ", ".join(found)


def _build(package: str, key: str) -> nn.Module:
    """Return the norm that a framework builds for a key of its configs."""
    if package == "detectron2":
        from detectron2.layers import get_norm

        return get_norm(key, 64)
    if package == "mmcv":
        from mmcv.cnn import build_norm_layer

        return build_norm_layer({"type": key}, 64)[1]
    from mmengine.registry import MODELS

    return MODELS.build({"type": key, "num_channels": 64})


def commit() -> str | None:
    """Return the checkout's commit, 12 hexadecimal digits; None outside a git checkout.

    "+changes" follows if tracked files differ from the commit. None is also returned if git fails
    or is not installed.
    """
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    words = ["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+changes"]
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout.strip() or None


def processor() -> str:
    """Return the name of this machine's CPU, such as "Intel Xeon"."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text() if info.is_file() else "")
    return match[1].strip() if match else platform.processor() or platform.machine()
