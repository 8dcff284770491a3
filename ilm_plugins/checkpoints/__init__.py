"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from .reading import FORMATS, code_is_allowed, data_types, loading, read
from .state import check_fits, copy_state, find_absent, find_state, unwrap_state
from .writing import PARTIAL, remove_partial, replacing, write

__all__ = [
    "FORMATS",
    "PARTIAL",
    "CheckpointError",
    "check_fits",
    "code_is_allowed",
    "copy_state",
    "data_types",
    "find_absent",
    "find_state",
    "loading",
    "read",
    "remove_partial",
    "replacing",
    "unwrap_state",
    "write",
]
