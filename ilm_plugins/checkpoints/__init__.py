"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from ..trust import code_is_allowed, loading
from .caffe2 import as_zoo, is_caffe2
from .reading import FORMATS, format_of, read, read_metadata
from .safe_globals import accept_data
from .state import (
    check_fits,
    complete_names,
    copy_state,
    find_absent,
    find_state,
    load_weights,
    unwrap_state,
)
from .writing import PARTIAL, remove_partial, replacing, to_array, write

__all__ = [
    "FORMATS",
    "PARTIAL",
    "CheckpointError",
    "accept_data",
    "as_zoo",
    "check_fits",
    "code_is_allowed",
    "complete_names",
    "copy_state",
    "find_absent",
    "find_state",
    "format_of",
    "is_caffe2",
    "load_weights",
    "loading",
    "read",
    "read_metadata",
    "remove_partial",
    "replacing",
    "to_array",
    "unwrap_state",
    "write",
]
