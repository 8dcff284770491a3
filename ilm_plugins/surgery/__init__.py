"""Convert the norms of trained models and checkpoints to our layers, and back.

:func:`convert` replaces the norms of a model, :func:`convert_state` those of a state dict without
its model, :func:`fit_state` makes a state dict fit a model; :func:`revert` and :func:`revert_state`
lead back. :func:`recalibrate` measures the running statistics of EN, SN and SSN again. One rule of
``RULES`` converts the tensors of a norm:

============  ======================  ==========================================================
from          to                      outputs
============  ======================  ==========================================================
GN            ILMGN, ILMLN (of one    the same
              group), AssocNorm, AN
IN            ILMIN                   the same
BN            ILMGN, ILMIN, ILMLN,    change: weight and bias are kept, each image's statistics
              AssocNorm, AN           take the place of the batch's; only if ``replacing="BN"``
BN            EN                      the same in evaluation: ratios start uniform, BN's row is
                                      K times the weight, the other rows are zero
BN            SN, SSN                 differ: weight, bias and statistics are kept, not the
                                      function
released ILM  ILMGN, ILMIN, ILMLN     close: released code divides variances by n - 1
released SN   SN; SSN                 close, for the same reason; SSN at radius 0
released SSN  SSN                     close, for the same reason
released AN   AN                      close, for the same reason
SN            SSN                     the same, at radius 0
ILM*, Assoc   GN, IN                  the same; while the decoders are zero and omega_offset 1/2
AN            GN                      the same; while the attention's weight is zero
EN            BN                      the same in evaluation; while ratios are uniform, and the
                                      other rows zero
SSN           BN, IN, GN              the same, once fixed on one of them
============  ======================  ==========================================================
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
