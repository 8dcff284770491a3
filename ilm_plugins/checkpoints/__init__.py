"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from ..trust import code_is_allowed, loading
from .caffe2 import as_zoo, is_caffe2
from .reading import FORMATS, format_of, read, read_metadata
from .safe_globals import accept_data
from .shards import (
    INDEX,
    Index,
    is_index,
    names_around,
    read_index,
    rename_shard,
    without_index,
    write_index,
)
from .state import (
    as_tensor,
    check_fits,
    check_loadable,
    complete_names,
    copy_state,
    find_absent,
    find_state,
    load_weights,
    read_named,
    unwrap_state,
)
from .writing import PARTIAL, create, dump, remove_partial, replacing, to_array, write

__all__ = [
    "FORMATS",
    "INDEX",
    "PARTIAL",
    "CheckpointError",
    "Index",
    "accept_data",
    "as_tensor",
    "as_zoo",
    "check_fits",
    "check_loadable",
    "code_is_allowed",
    "complete_names",
    "copy_state",
    "create",
    "dump",
    "find_absent",
    "find_state",
    "format_of",
    "is_caffe2",
    "is_index",
    "load_weights",
    "loading",
    "names_around",
    "read",
    "read_index",
    "read_metadata",
    "read_named",
    "remove_partial",
    "rename_shard",
    "replacing",
    "to_array",
    "unwrap_state",
    "without_index",
    "write",
    "write_index",
]
