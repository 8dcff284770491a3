"""The operation that all layers share, :func:`adaptive_norm`, and its backends.

It standardizes x by moments of channel groups, and rescales it by a function of these moments.
"""

import torch

from ..errors import UserError
from .engine import cpu
from .engine.activation import Activation
from .engine.autograd import adaptive_norm
from .engine.backends import use_backend
from .engine.network import Network
from .engine.pooling import coarsen, duplicate, over_batch, pool, restandardize
from .engine.reference import cast, moments
from .engine.shared_batch import SharedBatch
from .networks import Attentive, Autoencoder, Exemplar, SparseSwitch, Switch

__all__ = [
    "Activation",
    "Attentive",
    "Autoencoder",
    "Exemplar",
    "Network",
    "SharedBatch",
    "SparseSwitch",
    "Switch",
    "adaptive_norm",
    "cast",
    "coarsen",
    "cpu",
    "duplicate",
    "moments",
    "over_batch",
    "pool",
    "restandardize",
    "use_backend",
]

#: As in pyproject.toml.
OLDEST_TORCH = "2.6"
if torch.__version__ < OLDEST_TORCH:
    raise UserError(
        f"ilm_plugins: got torch {torch.__version__}, expected {OLDEST_TORCH} or newer; upgrade it"
    )
