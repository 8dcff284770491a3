"""Files of torch.save, a zip archive or, before torch 1.6, several pickles."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import torch

from ...errors import warn_once
from ..pickled import LeftOut, accepting_data, refused
from . import Format

#: What torch.save writes first: a zip archive; before torch 1.6, a number as a pickle.
BEGINNINGS = b"PK\x03\x04", pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
#: The function that makes quantized tensors in files of torch.
QUANTIZED = "_rebuild_qtensor"


def is_of_torch(path: Path) -> bool:
    """Return whether a file begins as torch.save writes it, in the format of either age."""
    with path.open("rb") as file:
        return file.read(max(map(len, BEGINNINGS))).startswith(BEGINNINGS)


def read(path: Path, unsafe: bool) -> Any:
    if unsafe:
        return torch.load(path, map_location="cpu", weights_only=False)
    # Without checked invariants, indices of sparse tensors beyond their size would be followed.
    with accepting_data(), torch.sparse.check_sparse_tensor_invariants():
        code = _find_code(path)
        torch.serialization.add_safe_globals([(LeftOut, name) for name in code])
        contents = torch.load(path, map_location="cpu", weights_only=True)
    if code:
        warn_once(
            f"{str(path)!r} holds {', '.join(code)}, which may run code and was not read; only "
            "--unsafe reads it"
        )
    return contents


def _find_code(path: Path) -> list[str]:
    """Return the classes and functions in a file that are not data; [] for a file before 1.6.

    UnpicklingError for a file that torch cannot load safely even with weights_only.
    """
    # torch refuses a tar, too, but not in a line that says why.
    if tarfile.is_tarfile(path):
        raise refused("tarfile.TarFile")
    with path.open("rb") as file:
        is_zip = file.read(4) == BEGINNINGS[0]
    # torch does not compare quantized tensors with their memory, and may read them while it loads.
    archive = torch._C.PyTorchFileReader(str(path)) if is_zip else None
    if QUANTIZED.encode() in (archive.get_record("data.pkl") if archive else path.read_bytes()):
        raise refused(f"torch._utils.{QUANTIZED}")
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if is_zip else []


FORMAT = Format((".pth", ".pt", ".bin", ".ckpt", ".tar"), read, torch.save, entries=True)
