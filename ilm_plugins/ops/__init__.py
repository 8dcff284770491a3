"""The one primitive: moments of channel groups, a rescale function, a per-channel affine map."""

from .backends import use_backend
from .fused import ByHand, adaptive_norm
from .kernels import Autoencoder, Mixture, Network
from .moments import coarsen, coarsen_vjp, duplicate, over_batch, over_batch_vjp, sum_groups
from .reference import cast, moments

__all__ = [
    "Autoencoder",
    "ByHand",
    "Mixture",
    "Network",
    "adaptive_norm",
    "cast",
    "coarsen",
    "coarsen_vjp",
    "duplicate",
    "moments",
    "over_batch",
    "over_batch_vjp",
    "sum_groups",
    "use_backend",
]
