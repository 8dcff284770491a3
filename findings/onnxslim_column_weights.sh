#!/usr/bin/env bash
# OnnxSlim 0.1.98: weights of a map's columns become weights of its channels.
#
# A convolution's output is multiplied by a constant, one weight for each column: a window, a prior of
# the position, a lens correction. Expected: `onnxslim.slim` keeps the outputs of a valid model.
# Seen: if the map is as wide as it has channels, the constant is multiplied into the convolution's
# weights, so that it scales channels instead of columns. Weights of rows, of shape (H, 1), are lost in
# the same way if H is the number of channels. No message: only the numbers are wrong.
#
# Write the product with the constant first, `Mul(constant, map)`, or skip the pass by
# `slim(model, skip_fusion_patterns=["FusionConvMul"])`; compare the outputs before and after.
# Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0
cat > "$folder/columns.py" <<'PROGRAM'
import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper, numpy_helper


def model(mul_inputs):
    """A convolution that copies its 4 channels, times one weight for each of 4 columns."""
    shape = [1, 4, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["map"]), helper.make_node("Mul", mul_inputs, ["y"])],
        "columns",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), "kernel"),
            numpy_helper.from_array(np.float32([1, 2, 3, 4]), "columns"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def show(title, made):
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((1, 4, 4, 4), np.float32)})
    print(f"{title}: a row of channel 0 {y[0, 0, 0].astype(int)}, of channel 3 {y[0, 3, 0].astype(int)}")


made = model(["map", "columns"])
show("as made", made)
show("slimmed", onnxslim.slim(made))
show("slimmed, fusion skipped", onnxslim.slim(made, skip_fusion_patterns=["FusionConvMul"]))
show("slimmed, constant first", onnxslim.slim(model(["columns", "map"])))
PROGRAM
expected="as made: a row of channel 0 [1 2 3 4], of channel 3 [1 2 3 4]
slimmed: a row of channel 0 [1 1 1 1], of channel 3 [4 4 4 4]
slimmed, fusion skipped: a row of channel 0 [1 2 3 4], of channel 3 [1 2 3 4]
slimmed, constant first: a row of channel 0 [1 2 3 4], of channel 3 [1 2 3 4]"
seen=$("$folder/venv/bin/python" "$folder/columns.py")
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
