"""The environment, and which of our keys each framework knows."""

import importlib
import importlib.metadata
import os
import platform

import torch

from .. import NORMS, __version__
from ..ops.backends import VARIABLE
from . import installed

#: OpenMMLab's packages, under their import names.
OPENMMLAB = ("mmcv", "mmengine", "mmdet", "mmseg", "mmpretrain")


def report() -> str:
    """Versions, one a line; and for each framework, the keys that it resolves to our layers."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = f"{torch.version.cuda}, {', '.join(gpus)}" if gpus else "not available"
    lines = [
        f"ilm_plugins  {__version__}",
        f"python       {platform.python_version()}, {platform.platform()}",
        f"torch        {torch.__version__}, CUDA {cuda}",
        f"torchvision  {_version('torchvision')}",
        f"triton       {_version('triton')}",
        f"backend      {os.environ.get(VARIABLE) or 'auto'}",
        f"detectron2   {_detectron2()}",
        *(f"{package:12} {_openmmlab(package)}" for package in OPENMMLAB),
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _detectron2() -> str:
    if not installed("detectron2"):
        return "not installed"
    get_norm = importlib.import_module("detectron2.layers").get_norm
    keys = [key for key, layer in NORMS.items() if type(get_norm(key, 64)) is layer]
    version = importlib.import_module("detectron2").__version__
    return f"{version}, NORM in get_norm: {', '.join(keys)}"


def _openmmlab(package: str) -> str:
    if not installed(package):
        return "not installed"
    try:
        version = importlib.import_module(package).__version__
    except ImportError as error:
        return f"cannot be imported: {' '.join(str(error).split())}"
    if package != "mmcv":
        return version
    build = importlib.import_module("mmcv.cnn").build_norm_layer
    keys = [key for key, layer in NORMS.items() if type(build({"type": key}, 64)[1]) is layer]
    return f"{version}, type in norm_cfg: {', '.join(keys)}"
