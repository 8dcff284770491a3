"""Read checkpoints: all files of weights are read here; their code runs only with --unsafe."""

import mmap
import os
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import CheckpointError, UserError, missing
from ..trust import code_is_allowed, loading
from .pickled import DataUnpickler, rebuild, refused
from .safe_globals import accepting_data
from .shards import is_index, read_index

#: Ending of a checkpoint's name -> its format. Files of other names are read as torch's.
FORMATS = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), "torch"),
    ".pkl": "pickle",
    ".safetensors": "safetensors",
}
#: What torch.save writes first: a zip archive; before torch 1.6, a number as a pickle.
BEGINNINGS = b"PK\x03\x04", pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
#: The function that makes quantized tensors in files of torch.
QUANTIZED = "_rebuild_qtensor"
#: One file is read at a time: what torch.load accepts is a setting of the process.
LOCK = threading.RLock()
#: Most bytes before a file's contents in a zip archive: numbers, its name, further fields.
MAX_HEADER = 30 + 2 * 65535


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """Return the contents of a checkpoint, with tensors on the CPU; numpy's arrays stay arrays.

    Args:
        path: a file of torch, of any name; a ``.pkl`` of detectron2 or Caffe2; a
            ``.safetensors``; or the index of several shards (``.index.json``), which are read
            together.
        unsafe: run the code that the file holds. Otherwise such a file is refused, whatever
            ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` says.

    Raises:
        CheckpointError: the file is missing or damaged, or holds code that is not allowed.
        UserError: the package safetensors or numpy is missing.
    """
    path = Path(path).expanduser()
    if is_index(path):
        return _read_shards(path, unsafe)
    kind = format_of(path)
    try:
        if kind == "safetensors":
            return safetensors(path).load_file(path)
        with LOCK:
            unsafe = unsafe or code_is_allowed()
            with loading(unsafe):
                is_pickle = kind == "pickle" and not _is_of_torch(path)
                load = _read_pickle if is_pickle else _read_torch
                contents = load(path, unsafe)
        return contents if unsafe else rebuild(contents)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a damaged file may raise any error
        reason = _reason(error, path)
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error


def _read_shards(path: Path, unsafe: bool) -> dict[str, Any]:
    """Return the tensors of all shards of an index, each from the shard that the index names."""
    weight_map = read_index(path).weight_map
    state: dict[str, Any] = {}
    for shard in dict.fromkeys(weight_map.values()):
        contents = read(path.with_name(shard), unsafe)
        if not isinstance(contents, Mapping):
            raise CheckpointError(
                f"shard {str(path.with_name(shard))!r} holds a {type(contents).__name__}, expected "
                "tensors by name; give an index of shards of a model"
            )
        state |= {n: value for n, value in contents.items() if weight_map.get(n, shard) == shard}
    if absent := [name for name in weight_map if name not in state]:
        raise CheckpointError(
            f"index {str(path)!r} names {len(absent)} tensors that its shards lack, such as "
            f"{absent[0]!r}; get all files of the checkpoint again"
        )
    return state


def format_of(path: Path) -> str | None:
    """Return the format of FORMATS that a file's name ends with, in any case; None for others."""
    return FORMATS.get(path.suffix.lower())


def safetensors(path: Path) -> ModuleType:
    """Return the module ``safetensors.torch``, which ``path`` needs; UserError without one."""
    try:
        from safetensors import torch

        return torch
    except ImportError as error:  # numpy's, too
        raise missing(str(path), error, "safetensors") from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the metadata of a ``.safetensors``, without its format; {} for other files.

    For an index, it is the metadata of all shards.
    """
    path = Path(path).expanduser()
    if is_index(path):
        shards = dict.fromkeys(read_index(path).weight_map.values())
        return {k: v for s in shards for k, v in read_metadata(path.with_name(s)).items()}
    if format_of(path) != "safetensors":
        return {}
    with safetensors(path).safe_open(path, "pt") as file:
        return {k: v for k, v in (file.metadata() or {}).items() if k != "format"}


def _read_pickle(path: Path, unsafe: bool) -> Any:
    with path.open("rb") as file:
        unpickler = pickle.Unpickler if unsafe else DataUnpickler
        return unpickler(file, encoding="latin1").load()


def _is_of_torch(path: Path) -> bool:
    """Return whether a file begins as torch.save writes it, in the format of either age."""
    with path.open("rb") as file:
        return file.read(max(map(len, BEGINNINGS))).startswith(BEGINNINGS)


def _read_torch(path: Path, unsafe: bool) -> Any:
    if unsafe:
        return torch.load(path, map_location="cpu", weights_only=False)
    # torch before 2.6 runs the code in these two formats even with weights_only.
    if tarfile.is_tarfile(path):
        raise refused("tarfile.TarFile")
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise refused("torch.jit.ScriptModule")
    # torch does not compare quantized tensors with their memory, and may read them while it loads.
    if _mentions(path, QUANTIZED.encode()):
        raise refused(f"torch._utils.{QUANTIZED}")
    # Without checked invariants, indices of sparse tensors beyond their size would be followed.
    with accepting_data(), torch.sparse.check_sparse_tensor_invariants():
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_zip(path: Path) -> bool:
    """Return whether torch reads a file as a zip: not if a zip follows an older format's bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4" and zipfile.is_zipfile(path)


def _mentions(path: Path, name: bytes) -> bool:
    """Return whether a pickle in a file of torch has a name."""
    spans = [(0, path.stat().st_size)]
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            # torch ignores the case of this name.
            pickles = [f for f in archive.infolist() if f.filename.lower().endswith("data.pkl")]
            # torch itself compresses no file, and may leave out checksums, which zipfile compares.
            compressed = (f for f in pickles if f.compress_type != zipfile.ZIP_STORED)
            if any(name in archive.read(entry) for entry in compressed):
                return True
        spans = [(f.header_offset, f.header_offset + MAX_HEADER + f.file_size) for f in pickles]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name, start, end) >= 0 for start, end in spans)


def _reason(error: Exception, path: Path) -> str:
    """Return why a file cannot be read, in one line."""
    # torch puts advice around an unpickler's message.
    text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
    text = text.partition(" Check the documentation of torch.load")[0]
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named or "Trying to call" in text or "Can only" in text:
        what = named[1] if named else "more than data"
        return f"it holds {what}, which may run code; if you trust its source, give --unsafe"
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                return "it is a pointer of git-lfs; run 'git lfs pull'"
    return f"it is truncated, or not a checkpoint ({type(error).__name__}: {text[:120]})"
