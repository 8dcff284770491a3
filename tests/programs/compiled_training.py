"""Train a compiled layer, whose biases have sizes that are no multiple of a vector's width.

There are five steps: a write past the end of a gradient shows only when memory is freed.
"""

import torch

from ilm_plugins import NORMS, use_backend

use_backend("reference")
compiled = torch.compile(NORMS["EN"](16, reduction=8))
for _ in range(5):
    compiled(torch.randn(128, 16, 4, 4, requires_grad=True)).square().mean().backward()
