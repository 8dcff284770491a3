"""Report the environment, and which of this package's norms each framework knows."""

import importlib
import importlib.metadata
import os
import platform

import torch

from ..errors import FRAMEWORKS as HOW_TO_INSTALL
from ..errors import OPERATORS, UserError, missing, one_line
from ..frameworks import installed
from ..frameworks.run.environment import FRAMEWORKS
from ..layers import NORMS
from ..ops import cpu
from ..ops.engine.backends import VARIABLE
from ..version import __version__

#: Package -> where its configs name norms, its module with norms, and what builds a key's norm.
SETTINGS = {
    "detectron2": ("NORM in get_norm", "detectron2.layers", lambda m, key: m.get_norm(key, 64)),
    "mmcv": (
        "type in norm_cfg",
        "mmcv.cnn",
        lambda m, key: m.build_norm_layer({"type": key}, 64)[1],
    ),
    "mmengine": (
        "type in MODELS",
        "mmengine.registry",
        lambda m, key: m.MODELS.build({"type": key, "num_channels": 64}),
    ),
}


def report() -> str:
    """Return a text of one line a component, for bug reports; this imports all frameworks."""
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
        f"C++ kernels  {_describe_kernels()}",
        *(f"{package:12} {_describe_framework(package)}" for package in FRAMEWORKS),
    ]
    return "\n".join(lines)


def _describe_kernels() -> str:
    try:
        if problem := cpu.load_problem():
            return f"missing: {problem}"
    except RuntimeError as error:
        return f"cannot be used: {error}"
    threads = "torch's threads" if cpu.parallel_for() else "a single thread"
    return f"{cpu.instruction_set()}, {threads}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _describe_framework(package: str) -> str:
    """Return the version of a framework, and the keys for which it builds this package's layers."""
    if not installed(package):
        return f"not installed: {HOW_TO_INSTALL[package]}"
    parts = []
    try:
        parts.append(importlib.import_module(package).__version__)
        if package == "mmdet" and not installed(OPERATORS):
            raise missing("mmdet", OPERATORS)
        if package in SETTINGS:
            place, name, build = SETTINGS[package]
            module = importlib.import_module(name)
            keys = [key for key, layer in NORMS.items() if type(build(module, key)) is layer]
            parts.append(f"{place}: {', '.join(keys)}")
    except Exception as error:  # incompatible packages may raise any exception
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        parts.append(f"cannot be used: {kind}{one_line(error)}")
    return ", ".join(parts)
