#!/usr/bin/env bash
# onnxsim 0.8.1, OnnxSlim 0.1.98, onnxoptimizer 0.4.2, ONNX Runtime 1.32.0: two random draws become one.
#
# A model that estimates its uncertainty (Monte Carlo dropout, a probabilistic segmenter) draws several
# times from the same map in one graph and returns the spread. Expected: nodes that draw without a seed
# stay separate draws. Seen: all three optimizers take two such nodes with the same input for a common
# subexpression and keep one; ONNX Runtime itself does so for Bernoulli, at its usual level of
# optimization. Dropout in training mode is merged too, and OnnxSlim removes it altogether, even with a
# seed. Then all samples are equal: the spread is exactly 0, and the model looks certain of everything.
#
# Give each node its own `seed` (each new session then repeats its draws), do not run OnnxSlim on a model
# with Dropout, and check that the spread is not 0. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxsim==0.8.1 onnxslim==0.1.98 onnxoptimizer==0.4.2 onnx==1.23.2 onnxruntime==1.32.0
cat > "$folder/draws.py" <<'PROGRAM'
import numpy as np
import onnx
import onnxoptimizer
import onnxruntime
import onnxsim
import onnxslim
from onnx import TensorProto, helper, numpy_helper

DRAWS = {"Dropout": ["x", "ratio", "training"], "Bernoulli": ["x"], "RandomNormalLike": ["x"]}
LEVELS = onnxruntime.GraphOptimizationLevel
PLAIN = LEVELS.ORT_DISABLE_ALL
TOOLS = {
    "as made": (lambda model: model, PLAIN),
    "onnxsim": (lambda model: onnxsim.simplify(model)[0], PLAIN),
    "onnxslim": (onnxslim.slim, PLAIN),
    "onnxoptimizer": (onnxoptimizer.optimize, PLAIN),
    "onnxruntime": (lambda model: model, LEVELS.ORT_ENABLE_ALL),
}


def model(operator, seeds):
    """Two draws from the same 4096 inputs."""
    inputs = DRAWS[operator]
    kind = int if operator == "Dropout" else float
    constants = [
        numpy_helper.from_array(np.float32(0.5), "ratio"),
        numpy_helper.from_array(np.array(True), "training"),
    ]
    nodes = [
        helper.make_node(operator, inputs, [name], **({"seed": kind(number)} if seeds else {}))
        for number, name in enumerate(("first", "second"), start=1)
    ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Concat", ["first", "second"], ["y"], axis=0)],
        "draws",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8192])],
        [constant for constant in constants if constant.name in inputs],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def samples(made, level):
    """Tell how many different draws are left."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full(4096, 0.5, np.float32)})
    if (y == 0.5).all():
        return "none"
    first, second = y.reshape(2, 4096)
    return "one" if (first == second).all() else "two"


for title, seeds in (("no seed", False), ("own seeds", True)):
    for operator in DRAWS:
        made = model(operator, seeds)
        found = [f"{name} {samples(change(made), level)}" for name, (change, level) in TOOLS.items()]
        print(f"{operator}, {title}: {', '.join(found)}")
PROGRAM
expected="Dropout, no seed: as made two, onnxsim one, onnxslim none, onnxoptimizer one, onnxruntime two
Bernoulli, no seed: as made two, onnxsim one, onnxslim one, onnxoptimizer one, onnxruntime one
RandomNormalLike, no seed: as made two, onnxsim one, onnxslim one, onnxoptimizer one, onnxruntime two
Dropout, own seeds: as made two, onnxsim two, onnxslim none, onnxoptimizer two, onnxruntime two
Bernoulli, own seeds: as made two, onnxsim two, onnxslim two, onnxoptimizer two, onnxruntime two
RandomNormalLike, own seeds: as made two, onnxsim two, onnxslim two, onnxoptimizer two, onnxruntime two"
seen=$("$folder/venv/bin/python" "$folder/draws.py")
echo "$seen"
if [ "$seen" != "$expected" ]; then
    echo "changed: expected" >&2
    echo "$expected" >&2
    exit 1
fi
