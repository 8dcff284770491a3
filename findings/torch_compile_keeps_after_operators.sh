#!/usr/bin/env bash
# torch 2.11.0: the position of a custom operator decides what torch.compile keeps for backward.
#
# The compiler recomputes cheap operations in the backward pass rather than keep their results. Expected:
# it makes no difference whether a subtraction that does not need the operator's result is written
# before or after the call of the operator. Seen: written after the call, the float32 difference is
# kept; written before, only the bfloat16 input, half of the bytes. In a network with a gate or a norm
# around an operator, this can double the memory of a training step. Write all operations that do not
# need the operator's result above its call.
#
# Runs on the CPU; the choice is made before any code is generated. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 numpy
cat > "$folder/kept.py" <<'PROGRAM'
import torch
from torch import Tensor

@torch.library.custom_op("example::network", mutates_args=())
def network(mean: Tensor) -> Tensor:
    return mean.sigmoid()

@network.register_fake
def _(mean):
    return torch.empty_like(mean)

def save(ctx, inputs, output):
    ctx.save_for_backward(output)

def differentiate(ctx, gradient):
    (y,) = ctx.saved_tensors
    return gradient * y * (1 - y)

network.register_autograd(differentiate, setup_context=save)

def gate(x: Tensor, is_first: bool) -> Tensor:
    """x.float() * network(mean of x), with the mean subtracted before or after the operator."""
    x = x.float()
    mean = x.mean((2, 3), keepdim=True)
    if is_first:
        centered = x - mean
        scale = network(mean)
    else:
        scale = network(mean)
        centered = x - mean
    return (scale * centered).relu().bfloat16()

def kept(is_first: bool) -> list:
    x = torch.randn(2, 8, 32, 32, dtype=torch.bfloat16, requires_grad=True)
    found = []
    def pack(tensor):
        if tensor.numel() == x.numel():
            found.append(str(tensor.dtype).removeprefix("torch."))
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.compile(gate, backend="aot_eager_decomp_partition")(x, is_first)
    return sorted(found)

print("subtraction after the operator:", *kept(False))
print("subtraction before the operator:", *kept(True))
PROGRAM
expected="subtraction after the operator: float32
subtraction before the operator: bfloat16"
seen=$(cd "$folder" && "$folder/venv/bin/python" kept.py)
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
