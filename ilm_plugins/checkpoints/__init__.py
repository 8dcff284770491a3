"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError
from .formats import format_of
from .pickled import accept_data
from .reading import read
from .state_dict_for_model import (
    check_fits,
    find_absent,
    find_part,
    load_weights,
    name_variances,
    unwrap_state,
)
from .state_dict_in_file import find_state, read_named
from .writing import write

__all__ = [
    "CheckpointError",
    "accept_data",
    "check_fits",
    "find_absent",
    "find_part",
    "find_state",
    "format_of",
    "load_weights",
    "name_variances",
    "read",
    "read_named",
    "unwrap_state",
    "write",
]
