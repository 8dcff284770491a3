"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from .contents import (
    FIX_LAST_CHECKPOINT,
    STATE_KEYS,
    check_fits,
    check_resumes,
    check_state,
    copy_state,
    describe_missing_state,
    find_absent,
    read_last_checkpoint,
    to_dense,
    unwrap_state,
)
from .reading import TRUST, allow, allow_arrays, code_is_allowed, loading, read, read_metadata
from .writing import FORMATS, PARTIAL, remove_partial, replacing, write

__all__ = [
    "FIX_LAST_CHECKPOINT",
    "FORMATS",
    "PARTIAL",
    "STATE_KEYS",
    "TRUST",
    "CheckpointError",
    "allow",
    "allow_arrays",
    "check_fits",
    "check_resumes",
    "check_state",
    "code_is_allowed",
    "copy_state",
    "describe_missing_state",
    "find_absent",
    "loading",
    "read",
    "read_last_checkpoint",
    "read_metadata",
    "remove_partial",
    "replacing",
    "to_dense",
    "unwrap_state",
    "write",
]
