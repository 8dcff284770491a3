#!/usr/bin/env bash
# Triton 3.6.0: `do_not_specialize` does not reach the elements of a tuple.
#
# A kernel may take a tuple, and `do_not_specialize` may name it. Expected: its integers are then as
# general as a plain integer that the option names. Seen: an element that is 1 becomes a constant of
# the kernel, and multiples of 16 are assumed to stay such; so each new set of sizes compiles the kernel
# again, and a kernel that is launched again by its own runner computes with the old 1. Whoever passes
# sizes in a tuple pays a compilation for each size; pass them one by one.
#
# Compiles for an H200, without a GPU. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet triton==3.6.0
cat > "$folder/tuples.py" <<'PROGRAM'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor


class Driver:
    """What compiling asks of a GPU's driver."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


triton.runtime.driver._active = Driver()


@triton.jit(do_not_specialize=["plain", "sizes"])
def kernel(out_ptr, plain, sizes):
    tl.store(out_ptr + plain, sizes[0] + sizes[1])


for plain, sizes in ((1, (1, 16)), (2, (2, 17))):
    source = kernel.warmup(MockTensor("fp32"), plain, sizes, grid=(1,)).src
    multiples = [path for path, found in source.attrs.items() if found and path[0] == 2]
    print(plain, sizes, "->", source.signature["plain"], source.signature["sizes"], multiples)
PROGRAM
expected="1 (1, 16) -> i32 ('constexpr', 'i32') [(2, 1)]
2 (2, 17) -> i32 ('i32', 'i32') []"
seen=$(cd "$folder" && TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" tuples.py)
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
