"""Convert the norms of trained models and checkpoints to our layers, and back.

:func:`convert` replaces the norms of a model, :func:`convert_state` those of a state dict without
its model, :func:`fit_state` makes a state dict fit a model; :func:`revert` and :func:`revert_state`
lead back. :func:`recalibrate` measures the mixtures' running statistics again.

- GroupNorm and InstanceNorm become ILM layers, AssocNorm and AN, with the same outputs; BatchNorm
  becomes these, with other statistics, only with ``replacing="BN"``.
- BatchNorm becomes EN, with the same outputs in evaluation: ratios start uniform, BN's row is K
  times the weight, the other rows are zero. SN and SSN keep weight, bias and statistics.
- SN becomes SSN, with the same outputs at radius 0.
- Layers of the papers' released code become ours, which divide variances by n, and not by n - 1.
- Each layer becomes the plain norm again, while it computes exactly that.
"""

from .common import Report
from .models import convert, revert
from .running import recalibrate
from .states import convert_state, fit_state, revert_state

__all__ = [
    "Report",
    "convert",
    "convert_state",
    "fit_state",
    "recalibrate",
    "revert",
    "revert_state",
]
