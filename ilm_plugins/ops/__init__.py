"""The operation that all layers share, :func:`adaptive_norm`, and its backends.

It standardizes x by moments of channel groups, and rescales it by a function of these moments.
"""

from .engine import cpu
from .engine.activation import Activation
from .engine.autograd import adaptive_norm
from .engine.backends import use_backend
from .engine.moments import coarsen, duplicate, over_batch, pool, restandardize
from .engine.network import Network
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
