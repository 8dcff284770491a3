"""The one primitive: moments of channel groups, a rescale function, a per-channel affine map."""

from .moments import coarsen, duplicate, over_batch
from .reference import adaptive_norm, cast, moments

__all__ = ["adaptive_norm", "cast", "coarsen", "duplicate", "moments", "over_batch"]
