"""The one primitive: moments of channel groups, a rescale function, a per-channel affine map."""

from .autograd import adaptive_norm
from .backends import use_backend
from .moments import coarsen, duplicate, over_batch, pool
from .networks import Autoencoder, Exemplar, Network, Switch
from .reference import cast, moments

__all__ = [
    "Autoencoder",
    "Exemplar",
    "Network",
    "Switch",
    "adaptive_norm",
    "cast",
    "coarsen",
    "duplicate",
    "moments",
    "over_batch",
    "pool",
    "use_backend",
]
