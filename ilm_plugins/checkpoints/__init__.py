"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from ..trust import code_is_allowed, loading
from .caffe2 import as_zoo, is_caffe2
from .formats import format_of
from .reading import read, read_metadata
from .rewriting import check_target, rewrite
from .safe_globals import accept_data
from .shards import INDEX, names_around
from .state import (
    as_tensor,
    check_fits,
    check_loadable,
    complete_names,
    copy_state,
    find_absent,
    find_part,
    find_state,
    load_weights,
    read_named,
    unwrap_state,
)
from .writing import PARTIAL, create, remove_partial, replacing, write

__all__ = [
    "INDEX",
    "PARTIAL",
    "CheckpointError",
    "accept_data",
    "as_tensor",
    "as_zoo",
    "check_fits",
    "check_loadable",
    "check_target",
    "code_is_allowed",
    "complete_names",
    "copy_state",
    "create",
    "find_absent",
    "find_part",
    "find_state",
    "format_of",
    "is_caffe2",
    "load_weights",
    "loading",
    "names_around",
    "read",
    "read_metadata",
    "read_named",
    "remove_partial",
    "replacing",
    "rewrite",
    "unwrap_state",
    "write",
]
