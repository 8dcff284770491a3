"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from .contents import (
    NAME_ONE,
    STATES,
    absent,
    bare,
    check_fits,
    check_resumes,
    check_state,
    copied,
    dense,
    named,
    stateless,
    unwrapped,
)
from .reading import TRUST, allow, code_is_allowed, loading, notes_of, read
from .writing import PARTIAL, remove_partial, replacing, write

__all__ = [
    "NAME_ONE",
    "PARTIAL",
    "STATES",
    "TRUST",
    "CheckpointError",
    "absent",
    "allow",
    "bare",
    "check_fits",
    "check_resumes",
    "check_state",
    "code_is_allowed",
    "copied",
    "dense",
    "loading",
    "named",
    "notes_of",
    "read",
    "remove_partial",
    "replacing",
    "stateless",
    "unwrapped",
    "write",
]
