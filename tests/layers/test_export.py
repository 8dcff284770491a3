"""Each layer, and a ResNet-50 of it, in the formats by which models leave Python."""

import copy
import io
import re
import sys

import pytest
import torch
from torch import nn

import fresh
from cases import MIXTURES, every_layer, inputs, modes, results
from ilm_plugins import NORMS, freeze
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.layers.projection import Projection

torchvision = pytest.importorskip("torchvision", reason="needs torchvision")

C = 64
VERSION = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
AXES = {0: "batch", 2: "height", 3: "width"}
#: Beside the size of the example: one instance, an odd size, a single pixel.
SHAPES = [(2, C, 6, 7), (1, C, 3, 9), (5, C, 1, 1)]

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
#: Of an auto-encoder and of a mixture every day, of all layers in the wide tests.
one_of_each_kind = pytest.mark.parametrize(
    "name", [n if n in ("ILMGN", "EN") else pytest.param(n, marks=pytest.mark.wide) for n in NORMS]
)


def build(name, training=False):
    """A layer that has seen a batch."""
    torch.manual_seed(0)
    layer = NORMS[name](C)
    layer(inputs(4, C, 5, 5, dtype=torch.float32))
    return layer.train(training)


def batches():
    return [inputs(*shape, dtype=torch.float32) for shape in SHAPES]


def in_float64(model, x):
    """The output of a copy of the model."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double()).float()


def assert_recorded_for(batches, model, record):
    """Compare what is recorded from a model and the first batch with the model, on all batches."""
    run = record(copy.deepcopy(model), batches[0])
    for x in batches:
        torch.testing.assert_close(run(x), in_float64(model, x), rtol=1e-4, atol=1e-4)


# ---- ONNX


def dimensions(model):
    """Any batch, and any size, or any multiple of 32 for a model that halves its input so often."""
    step = 1 if isinstance(model, AdaptiveNorm) else 32
    dims = {axis: torch.export.Dim(name, max=4096) for axis, name in AXES.items()}
    return {axis: step * dim if axis and step > 1 else dim for axis, dim in dims.items()}


def in_onnxruntime(exported):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = onnxruntime.InferenceSession(exported.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def by_dynamo(model, x):
    if VERSION < (2, 7):
        pytest.skip("torch.onnx.export(dynamo=True) is experimental before torch 2.7")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    shapes, file = (dimensions(model),), io.BytesIO()
    torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False).save(file)
    return in_onnxruntime(file)


def by_torchscript(model, x):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    file, mode = io.BytesIO(), torch.onnx.TrainingMode.PRESERVE
    names = {"input_names": ["x"], "dynamic_axes": {"x": AXES}}
    torch.onnx.export(model, (x,), file, dynamo=False, training=mode, **names)
    return in_onnxruntime(file)


exporters = pytest.mark.parametrize(
    "export",
    [by_dynamo, pytest.param(by_torchscript, marks=pytest.mark.wide)],
    ids=["dynamo", "torchscript"],
)


@exporters
@pytest.mark.parametrize(
    "name", [n if n == "EN" else pytest.param(n, marks=pytest.mark.wide) for n in NORMS]
)
def test_onnx_for_any_batch_and_size(name, export):
    assert_recorded_for(batches(), build(name), export)


@pytest.mark.wide
@exporters
@pytest.mark.parametrize("name", ["EN", "SN"])
def test_onnx_in_training_mode_uses_the_statistics_of_the_batch(name, export):
    assert_recorded_for(batches(), build(name, training=True), export)


# ---- torch.export and TorchScript


def by_export(model, x):
    program = torch.export.export(model, (x,), dynamic_shapes=(dimensions(model),))
    if VERSION < (2, 11):  # 2.4 cannot save quotients of sizes
        return program.module()
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def by_trace(model, x):
    return torch.jit.trace(model, x, check_trace=False)


def reloaded(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


#: One of each network; ILMLN takes the longer way of the auto-encoder.
EVERYDAY = "ILMLN", "EN", "SSN", "AN"


@pytest.mark.parametrize(
    "name", [n if n in EVERYDAY else pytest.param(n, marks=pytest.mark.wide) for n in NORMS]
)
def test_exported_for_any_batch_and_size(name):
    assert_recorded_for(batches(), build(name), by_export)


@pytest.mark.parametrize("record", [by_export, by_trace], ids=["export", "trace"])
@pytest.mark.parametrize("name", ["EN"])
def test_what_is_recorded_in_training_mode_goes_on_training(name, record):
    layer = build(name, training=True)
    recorded = record(copy.deepcopy(layer), inputs(2, C, 5, 5, dtype=torch.float32))
    layer.load_state_dict(recorded.state_dict())  # a trace has trained on its example
    before = copy.deepcopy(list(recorded.buffers()))
    for shape in ((3, C, 2, 4), (6, C, 7, 5)):
        x = inputs(*shape, dtype=torch.float32, seed=shape[0])
        torch.testing.assert_close(recorded(x), layer(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            dict(recorded.named_buffers()), dict(layer.named_buffers()), rtol=1e-5, atol=1e-5
        )
    assert all((b != a).any() for b, a in zip(before, recorded.buffers(), strict=True))


@modes(NORMS)
def test_traces_are_saved_and_trained(name, training):
    layer, x = build(name, training), inputs(3, C, 4, 5, dtype=torch.float32)
    traced = reloaded(by_trace(copy.deepcopy(layer), inputs(2, C, 6, 6, dtype=torch.float32)))
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-4)
    for module in (layer, traced):
        module(x).square().sum().backward()
    gradients = {n: p.grad for n, p in layer.named_parameters()}
    of_trace = {n: p.grad for n, p in traced.named_parameters()}
    torch.testing.assert_close(of_trace, gradients, rtol=1e-3, atol=1e-3)


@every_layer
def test_script_is_refused_in_one_line(name):
    for model in (NORMS[name](C), nn.Sequential(nn.ReLU(), NORMS[name](C))):
        with pytest.raises(NotImplementedError) as caught:
            torch.jit.script(model)
        message = str(caught.value)
        assert message.startswith(NORMS[name].__name__) and "\n" not in message
        assert "torch.jit.trace(model, example)" in message


# ---- torch.compile


def outputs_gradients_and_buffers(layer, x):
    y, *gradients = results(layer, x, inputs(*x.shape, dtype=x.dtype, seed=3))
    return [y, *gradients, *(b.clone() for b in layer.buffers())]


@modes(NORMS)
@pytest.mark.wide
def test_compiled_once_for_every_batch_and_size(name, training):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    layer = build(name, training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True, backend=counter)
    graphs = set()
    for shape in ((2, C, 5, 6), (3, C, 4, 4), (7, C, 2, 3)):
        x = inputs(*shape, dtype=torch.float32)
        found = [outputs_gradients_and_buffers(module, x) for module in (compiled, layer)]
        torch.testing.assert_close(*found, rtol=2e-4, atol=2e-4)
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "backend, tolerance",
    [
        pytest.param("aot_eager", 2e-4, marks=pytest.mark.wide),
        pytest.param("inductor", 1e-3, marks=pytest.mark.long),
    ],
)
@every_layer
def test_compiled_for_one_size(name, backend, tolerance):
    torch._dynamo.reset()
    layer, x = build(name, training=True), inputs(3, C, 5, 6, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend=backend)
    found = [outputs_gradients_and_buffers(module, x) for module in (compiled, layer)]
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


@pytest.mark.wide
@pytest.mark.parametrize("name", MIXTURES)
def test_a_compiled_layer_can_be_frozen(name):
    torch._dynamo.reset()
    layer, x = build(name, training=True), inputs(3, C, 5, 6, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compiled(x)
    freeze(layer)
    before = layer.running_mean.clone()
    compiled(x)
    assert torch.equal(layer.running_mean, before)


@pytest.mark.wide
def test_compiled_networks_compute_in_float32_whatever_matrix_products_may():
    torch._dynamo.reset()
    network, x = Projection(256, 128), 1000.3 + torch.randn(512, 256)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    finally:
        torch.set_float32_matmul_precision(before)
    exact = network.double()(x.double())
    assert y.dtype == torch.float32
    assert (y - exact).abs().max() <= 1e-6 * exact.abs().max()


#: Trains a compiled layer whose networks have sizes that are no multiple of a vector's width; 5
#: times, as what is written past the end of a gradient is noticed when memory is freed.
TRAINING = """
import torch
from ilm_plugins import NORMS, freeze

layer = NORMS[{name!r}](16, **{options!r})
compiled = torch.compile(layer)
generator = torch.Generator().manual_seed(0)
for _ in range(5):
    x = torch.randn(128, 16, 4, 4, generator=generator, requires_grad=True)
    compiled(x).square().mean().backward()
"""


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param("EN", {"reduction": 8}, marks=pytest.mark.wide),
        *(
            pytest.param(name, options, marks=pytest.mark.long)
            for name, options in (
                ("ILMGN", {"num_groups": 4, "key_group_size": 2, "hidden": 5}),
                ("ILMGN", {"num_groups": 4, "key_group_size": 4}),
                ("AssocNorm", {"num_groups": 4, "num_key_groups": 16, "hidden": 5}),
                ("AN", {"num_groups": 4, "num_affine": 7}),
            )
        ),
    ],
)
def test_compiled_gradients_stay_within_their_memory(name, options):
    code = TRAINING.format(name=name, options=options)
    fresh.run([sys.executable, "-c", code], check=True)


# ---- ResNet-50

FORMATS = {
    "onnx": by_dynamo,
    "export": by_export,
    "trace": lambda model, x: reloaded(by_trace(model, x)),
}


def resnet(norm):
    """The first two stages of a ResNet-50, of one block each."""
    block = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(block, (1, 1, 1, 1), norm_layer=norm)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(512, 8)
    return model


def resnet_50(norm):
    return torchvision.models.resnet50(norm_layer=norm, num_classes=8)


@pytest.mark.parametrize("record", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "name, make",
    [
        pytest.param("ILMGN", resnet, marks=pytest.mark.wide),
        *(pytest.param(n, resnet_50, marks=pytest.mark.long) for n in NORMS),
    ],
)
def test_a_model_for_any_batch_and_size(name, make, record):
    torch.manual_seed(0)
    model = make(NORMS[name])
    # Instance norms of a last stage of 2 x 2 pixels, whose variance can be next to nothing, would
    # raise float32's rounding above the tolerance.
    side = 64 if make is resnet else 128
    with torch.no_grad():
        model(torch.randn(4, 3, side, side))
    sizes = (2, side), (3, side + 32)
    images = [torch.randn(number, 3, height, side) for number, height in sizes]
    assert_recorded_for(images, model.eval(), record)
