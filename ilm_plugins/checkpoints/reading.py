"""Read checkpoints: all files of weights are read here; their code runs only with --unsafe."""

import os
import re
import threading
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UserError
from ..trust import code_is_allowed, loading
from .formats import format_of
from .pickled import check_contents

#: One file is read at a time: what torch.load accepts is a setting of the process.
LOCK = threading.RLock()


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """Return the contents of a checkpoint, with tensors on the CPU; numpy's arrays stay arrays.

    Args:
        path: a file of torch, of any name; a ``.pkl`` of detectron2 or Caffe2; or a
            ``.safetensors``.
        unsafe: run the code that the file holds. Otherwise, objects in a file of torch become empty
            dicts, with a warning, and other files with code are refused, whatever
            ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` says.

    Raises:
        CheckpointError: the file is missing or damaged, or holds code that is not allowed.
        UserError: the package safetensors or numpy is missing.
    """
    path = Path(path).expanduser()
    try:
        with LOCK:
            unsafe = unsafe or code_is_allowed()
            with loading(unsafe):
                contents = format_of(path).read(path, unsafe)
        if not unsafe:
            check_contents(contents)
        return contents
    except UserError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a damaged file may raise any error
        reason = _reason(error)
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, in one line."""
    # torch puts advice around an unpickler's message.
    text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
    text = text.partition(" Check the documentation of torch.load")[0]
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named or "Trying to call" in text or "Can only" in text:
        what = named[1] if named else "more than data"
        return f"it holds {what}, which may run code; if you trust its source, give --unsafe"
    return f"it is truncated, or not a checkpoint ({type(error).__name__}: {text[:120]})"
