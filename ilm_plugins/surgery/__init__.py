"""Convert the norms of trained models and checkpoints to our layers, and back.

:func:`convert` replaces the norms of a model, :func:`convert_state` those of a state dict without
its model, :func:`fit_state` makes a state dict fit a model; :func:`revert` and :func:`revert_state`
lead back. :func:`recalibrate` measures the running statistics of EN, SN and SSN again. One rule of
``RULES`` converts the tensors of a norm:

- GroupNorm and InstanceNorm to ILM layers, AssocNorm and AN, with the same outputs; BatchNorm to
  these, with other statistics, only with ``replacing="BN"``.
- BatchNorm to EN, with the same outputs in evaluation: ratios start uniform, BN's row is K times
  the weight, the other rows are zero. To SN and SSN weight, bias and statistics are kept.
- SN to SSN, with the same outputs at radius 0.
- Layers of the papers' released code to ours, which divide variances by n, and not by n - 1.
- Each layer back to the plain norm, while it computes exactly that.
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
