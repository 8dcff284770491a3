"""Train compiled layers, whose biases have sizes that are no multiple of a vector's width.

There are five steps: a write past the end of a gradient shows only when memory is freed.
"""

import torch

from ilm_plugins import NORMS, use_backend

use_backend("reference")
for layer in (NORMS["EN"](16, reduction=8), NORMS["AN"](16, num_groups=4, num_affine=7)):
    compiled = torch.compile(layer)
    for _ in range(5):
        compiled(torch.randn(128, 16, 4, 4, requires_grad=True)).square().mean().backward()
