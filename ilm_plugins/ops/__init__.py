"""The operation that all layers share, :func:`adaptive_norm`, and its backends.

It standardizes x by moments of channel groups, and rescales it by a function of these moments.
"""

from .autograd import adaptive_norm
from .backends import use_backend
from .moments import coarsen, duplicate, over_batch, pool, restandardize
from .networks import Attentive, Autoencoder, Exemplar, Network, SparseSwitch, Switch
from .processes import SharedBatch
from .reference import cast, moments

__all__ = [
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
    "duplicate",
    "moments",
    "over_batch",
    "pool",
    "restandardize",
    "use_backend",
]
