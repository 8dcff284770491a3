"""Checkpoint files: read without running the code in them, written whole or not at all."""

from ..errors import CheckpointError as CheckpointError
from .formats import format_of as format_of
from .pickled import accept_data as accept_data
from .reading import read as read
from .state_dict_for_model import check_fits as check_fits
from .state_dict_for_model import find_absent as find_absent
from .state_dict_for_model import find_part as find_part
from .state_dict_for_model import load_weights as load_weights
from .state_dict_for_model import name_variances as name_variances
from .state_dict_for_model import unwrap_state as unwrap_state
from .state_dict_in_file import find_state as find_state
from .state_dict_in_file import read_named as read_named
from .writing import write as write
