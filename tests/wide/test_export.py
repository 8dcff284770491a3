"""Each layer in the formats by which models leave Python, at length."""

import copy
import io
from itertools import product

import pytest
import torch

from equations.cases import MIXTURES, inputs, wide
from helpers import processes
from helpers.close import assert_close
from ilm_plugins import NORMS
from ilm_plugins.layers.projection import Projection, project

C = 64
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
AXES = {0: "batch", 2: "height", 3: "width"}
#: Roundings that another order of sums and other kernels cost.
RECORDED = 2**11

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(It is recom|Exporting a model|ONNX Prep):UserWarning"),
]


def everyday(choices, *chosen):
    """Mark parameters for the wide tests, but for some of every day."""
    return [c if c in chosen else wide(*c) for c in choices]


def floats(*shape):
    return inputs(*shape, dtype=torch.float32)


def build(name, training=False):
    """A layer that has seen a batch."""
    torch.manual_seed(0)
    layer = NORMS[name](C)
    layer(floats(4, C, 5, 5))
    return layer.train(training)


def any_size():
    return ({axis: torch.export.Dim(name, max=4096) for axis, name in AXES.items()},)


def in_onnxruntime(exported):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = onnxruntime.InferenceSession(exported.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def by_dynamo(model, x, **options):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    file, options = io.BytesIO(), {"dynamic_shapes": any_size(), "verbose": False, **options}
    torch.onnx.export(model, (x,), dynamo=True, **options).save(file)
    return in_onnxruntime(file)


def by_torchscript(model, x, **options):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    file, mode = io.BytesIO(), torch.onnx.TrainingMode.PRESERVE
    names = {"input_names": ["x"], "dynamic_axes": {"x": AXES}}
    torch.onnx.export(model, (x,), file, dynamo=False, training=mode, **names, **options)
    return in_onnxruntime(file)


def by_openvino(model, x):
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    converted = openvino.convert_model(model, example_input=x)
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def by_export(model, x):
    program = torch.export.export(model, (x,), dynamic_shapes=any_size())
    if VERSION < (2, 11):  # some cannot save quotients of sizes
        return program.module()
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def by_trace(model, x):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x, check_trace=False), file)
    file.seek(0)
    return torch.jit.load(file)


#: One layer of each equation; ILMLN takes the longer way of the auto-encoder.
KINDS = "ILMLN", "EN", "SSN", "AN"
EVERYDAY = [("EN", by_dynamo, False), *product(("ILMLN", "EN"), (by_export,), (False,))]
RECORDINGS = [*product(KINDS, (by_dynamo, by_export), (False,)), ("ILMLN", by_torchscript, False)]
RECORDINGS += product(("EN",), (by_dynamo, by_torchscript), (True,))


@pytest.mark.parametrize("name, record, training", everyday(RECORDINGS, *EVERYDAY))
def test_recorded_for_any_batch_and_size(name, record, training):
    """Of one instance, of an odd size, and of a single pixel, too."""
    batches = [floats(*shape) for shape in ((2, C, 6, 7), (1, C, 3, 9), (5, C, 1, 1))]
    layer = build(name, training)
    run = record(copy.deepcopy(layer), batches[0])
    with torch.no_grad():
        for x in batches:
            assert_close(run(x), copy.deepcopy(layer).double()(x.double()), RECORDED)


@pytest.mark.parametrize("name", [n if n == "SSN" else wide(n) for n in KINDS])
def test_exported_products_are_of_numbers_alone(name):
    """PT2E quantization observes a product's inputs, and has no histogram of booleans."""
    operators = torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor
    graph = torch.export.export(build(name), (floats(2, C, 5, 5),)).graph
    products = [node for node in graph.nodes if node.target in operators]
    assert products
    for node in products:
        assert all(n.meta["val"].dtype.is_floating_point for n in node.all_input_nodes), node


@pytest.mark.wide
@pytest.mark.parametrize("name", KINDS)
def test_openvino_computes_trained_layers(name):
    layer, x = build(name), floats(3, C, 9, 5)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)  # so that no ratio or attention is 0 or 1
    run = by_openvino(copy.deepcopy(layer), x)
    with torch.no_grad():
        assert_close(run(x), copy.deepcopy(layer).double()(x.double()), RECORDED)


@pytest.mark.parametrize("name", [n if n == "ILMLN" else wide(n) for n in KINDS])
def test_onnx_of_opset_21_keeps_the_digits_of_large_means(name):
    """Which onnxruntime's GroupNormalization loses; x itself rounds to 2^10 units."""
    layer, x = build(name), 1000 + floats(2, C, 16, 16)
    if name in MIXTURES:
        layer.running_mean += 1000
    run = by_dynamo(copy.deepcopy(layer), x, opset_version=21)
    with torch.no_grad():
        assert_close(run(x), layer.double()(x.double()), 2**14)


@pytest.mark.parametrize("name", [n if n == "EN" else wide(n) for n in KINDS])
def test_onnx_of_opset_11_computes_the_same(name):
    layer, x = build(name), floats(3, C, 6, 7)
    run = by_torchscript(copy.deepcopy(layer), floats(2, C, 5, 5), opset_version=11)
    with torch.no_grad():
        assert_close(run(x), copy.deepcopy(layer).double()(x.double()), RECORDED)


@pytest.mark.parametrize("record", [by_export, by_trace])
@pytest.mark.parametrize("name", ["EN", wide("SSN")])
def test_what_is_recorded_in_training_mode_goes_on_training(name, record):
    layer = build(name, training=True)
    recorded = record(copy.deepcopy(layer), floats(2, C, 5, 5))
    layer.load_state_dict(recorded.state_dict())  # a trace has trained on its example
    for shape in ((3, C, 2, 4), (6, C, 7, 5)):
        x, before = floats(*shape), recorded.running_mean.clone()
        found, expected = recorded(x), layer(x)
        assert_close(found, expected, RECORDED)
        assert_close(dict(recorded.named_buffers()), dict(layer.named_buffers()))
        assert not torch.equal(recorded.running_mean, before)
        for y in (found, expected):
            y.square().sum().backward()
    gradients = {n: p.grad for n, p in layer.named_parameters()}
    largest = max(g.abs().max().item() for g in gradients.values())
    found = {n: p.grad for n, p in recorded.named_parameters()}
    assert_close(found, gradients, RECORDED, largest)


# ---- torch.compile


@pytest.mark.wide
def test_compiled_gradients_stay_within_their_memory():
    processes.run_program("compiled_training.py")


@pytest.mark.wide
def test_compiled_networks_compute_in_float32_whatever_matrix_products_may():
    torch._dynamo.reset()
    weight, x = Projection(256, 128).weight, 1000.3 + torch.randn(512, 256)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.compile(project, backend="aot_eager", fullgraph=True)(x, weight)
    finally:
        torch.set_float32_matmul_precision(before)
    assert y.dtype == torch.float32
    assert_close(y, project(x.double(), weight.double()), 16)
