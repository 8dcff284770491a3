#!/usr/bin/env bash
# onnxoptimizer 0.4.2: zero padding before a max pool no longer counts as zeros.
#
# Some backbones pad with zeros and pool afterwards (`F.pad` and `MaxPool2d`, "same" padding from
# TensorFlow). Expected: `onnxoptimizer.optimize`, with its own list of passes, keeps a model's outputs.
# Seen: its pass `fuse_pad_into_pool` makes the zeros the pool's own padding; but a max pool never picks
# its padding, however low the values beside it. Where all values are negative, as they may be behind a
# norm or a LeakyReLU, the maximum at the border is then negative and not 0. No message.
#
# Give a list of passes without `fuse_pad_into_pool`. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxoptimizer==0.4.2 onnx==1.23.2 onnxruntime==1.32.0
cat > "$folder/pool.py" <<'PROGRAM'
import numpy as np
import onnx
import onnxoptimizer
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

graph = helper.make_graph(
    [
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3]),
    ],
    "pool",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 3, 3])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3, 3])],
    [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
passes = [name for name in onnxoptimizer.get_fuse_and_elimination_passes() if name != "fuse_pad_into_pool"]
models = {
    "as made": model,
    "optimized": onnxoptimizer.optimize(model),
    "optimized without fuse_pad_into_pool": onnxoptimizer.optimize(model, passes),
}
for title, made in models.items():
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full((1, 1, 3, 3), -5, np.float32)})
    print(f"{title}: {y[0, 0].astype(int).tolist()}")
PROGRAM
expected="as made: [[0, 0, 0], [0, -5, 0], [0, 0, 0]]
optimized: [[-5, -5, -5], [-5, -5, -5], [-5, -5, -5]]
optimized without fuse_pad_into_pool: [[0, 0, 0], [0, -5, 0], [0, 0, 0]]"
seen=$("$folder/venv/bin/python" "$folder/pool.py")
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
