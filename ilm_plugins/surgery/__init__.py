"""Convert the norms of trained models and checkpoints to our layers, and back.

Outputs stay the same from GroupNorm and InstanceNorm to ILM layers, AssocNorm and AN, from
BatchNorm to EN in evaluation, and back, as long as the layer still computes a plain norm; and from
SN to SSN at radius 0. They change from BatchNorm to all others, from LayerNorm2d, and, a little,
from the papers' released layers, which divide variances by n - 1.
"""

from .convert_model import convert as convert
from .convert_model import revert as revert
from .convert_state_dict import convert_state as convert_state
from .convert_state_dict import fit_state as fit_state
from .convert_state_dict import revert_state as revert_state
from .evaluating import evaluating as evaluating
from .evaluating import watching as watching
from .fusing import fuse_activations as fuse_activations
from .recalibration import recalibrate as recalibrate
from .report import Report as Report
from .selection import check_match as check_match
from .selection import matches as matches
