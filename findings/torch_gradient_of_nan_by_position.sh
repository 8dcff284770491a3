#!/usr/bin/env bash
# torch 2.11.0 on the CPU: the gradient at a NaN depends on the position of the NaN in the tensor.
#
# A NaN that reaches ReLU6, Hardtanh, Hardswish, ELU or CELU should have one gradient, whatever its
# place. Expected: NaN, or 1 as where no bound applies, for each of 71 equal NaNs. Seen: the first 64
# values, which are computed in vectors, get 0 (ReLU6, Hardtanh) or NaN (Hardswish, ELU, CELU); the
# last 7, which are computed one by one, get 1. All outputs are NaN. So a shape decides whether a NaN
# reaches the parameters below a ReLU6, and the same model may diverge visibly with one image size,
# and train on behind zeros with another. ReLU, LeakyReLU, SiLU, GELU and Mish treat all alike. The
# instruction set (default, AVX2, AVX-512) makes no difference.
#
# Sum f(x) for 71 NaNs, and read the gradient of x. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy==2.2.6
cat > "$folder/nan.py" <<'PROGRAM'
import torch
from torch.nn import functional as F

seen = {}
for name in "relu6 hardtanh hardswish elu celu relu leaky_relu silu gelu mish".split():
    x = torch.full((71,), torch.nan, requires_grad=True)
    y = getattr(F, name)(x)
    assert y.isnan().all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    parts = []
    for part in (gradient[:64], gradient[64:]):
        assert part.isnan().all() or (part == part[0]).all()
        parts.append("NaN" if part[0].isnan() else f"{part[0].item():g}")
    seen[name] = tuple(parts)
    print(name, *parts)
assert seen["relu6"] == seen["hardtanh"] == ("0", "1")
assert seen["hardswish"] == seen["elu"] == seen["celu"] == ("NaN", "1")
for name in "relu leaky_relu silu gelu mish".split():
    assert seen[name][0] == seen[name][1]
PROGRAM
"$folder/venv/bin/python" "$folder/nan.py"
