"""Each layer, and a ResNet of it, in the formats by which models leave Python, at length."""

import copy
import io
import re
import sys

import pytest
import torch
from torch import nn

import fresh
from cases import MIXTURES, inputs, modes, results
from close import assert_close
from ilm_plugins import NORMS, freeze
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.layers.projection import Projection

torchvision = pytest.importorskip("torchvision", reason="needs torchvision")

C = 64
VERSION = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
AXES = {0: "batch", 2: "height", 3: "width"}
#: Beside the size of the example: one instance, an odd size, a single pixel.
SHAPES = [(2, C, 6, 7), (1, C, 3, 9), (5, C, 1, 1)]
#: Roundings that another order of sums and other kernels cost, of networks of some layers.
RECORDED = 2**11

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def everyday(names, *chosen):
    """Parametrize by layer: some every day, all in the wide tests."""
    marked = [n if n in chosen else pytest.param(n, marks=pytest.mark.wide) for n in names]
    return pytest.mark.parametrize("name", marked)


def build(name, training=False):
    """A layer that has seen a batch."""
    torch.manual_seed(0)
    layer = NORMS[name](C)
    layer(inputs(4, C, 5, 5, dtype=torch.float32))
    return layer.train(training)


def assert_recorded_for(batches, model, record):
    """Compare what is recorded from a model and the first batch with the model, on all batches."""
    run = record(copy.deepcopy(model), batches[0])
    with torch.no_grad():
        for x in batches:
            assert_close(run(x), copy.deepcopy(model).double()(x.double()), RECORDED)


def batches():
    return [inputs(*shape, dtype=torch.float32) for shape in SHAPES]


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


def by_export(model, x):
    program = torch.export.export(model, (x,), dynamic_shapes=(dimensions(model),))
    if VERSION < (2, 11):  # 2.4 cannot save quotients of sizes
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


@everyday(NORMS, "EN")
def test_onnx_for_any_batch_and_size(name):
    assert_recorded_for(batches(), build(name), by_dynamo)


@pytest.mark.wide
@pytest.mark.parametrize("export", [by_dynamo, by_torchscript])
@pytest.mark.parametrize("name, training", [("EN", True), ("SN", True), ("ILMGN", False)])
def test_onnx_by_either_exporter_and_in_training_mode(name, training, export):
    assert_recorded_for(batches(), build(name, training), export)


@everyday(NORMS, "ILMLN", "EN", "SSN", "AN")  # ILMLN takes the longer way of the auto-encoder
def test_exported_for_any_batch_and_size(name):
    assert_recorded_for(batches(), build(name), by_export)


@pytest.mark.parametrize("record", [by_export, by_trace])
@everyday(MIXTURES, "EN")
def test_what_is_recorded_in_training_mode_goes_on_training(name, record):
    layer = build(name, training=True)
    recorded = record(copy.deepcopy(layer), inputs(2, C, 5, 5, dtype=torch.float32))
    layer.load_state_dict(recorded.state_dict())  # a trace has trained on its example
    for shape in ((3, C, 2, 4), (6, C, 7, 5)):
        x, before = inputs(*shape, dtype=torch.float32), recorded.running_mean.clone()
        found, expected = recorded(x), layer(x)
        assert_close(found, expected, RECORDED)
        assert_close(dict(recorded.named_buffers()), dict(layer.named_buffers()))
        assert not torch.equal(recorded.running_mean, before)
        for y in (found, expected):
            y.square().sum().backward()
    gradients = {n: p.grad for n, p in layer.named_parameters()}
    largest = max(g.abs().max().item() for g in gradients.values())
    found = {n: p.grad for n, p in recorded.named_parameters()}
    assert_close([found[n] for n in gradients], gradients.values(), RECORDED, largest)


# ---- torch.compile


def outputs_gradients_and_buffers(layer, x):
    y, *gradients = results(layer, x, inputs(*x.shape, dtype=x.dtype, seed=3))
    return [y, *gradients, *(b.clone() for b in layer.buffers())]


def assert_compiled(found, expected):
    for a, e in zip(found, expected, strict=True):
        assert_close(a, e, 4 * RECORDED, max(1, e.abs().max().item()))


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
        assert_compiled(*(outputs_gradients_and_buffers(m, x) for m in (compiled, layer)))
        graphs.add(counter.frame_count)
    assert len(graphs) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", NORMS)
def test_compiled_by_inductor_for_one_size(name):
    torch._dynamo.reset()
    layer, x = build(name, training=True), inputs(3, C, 5, 6, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    assert_compiled(*(outputs_gradients_and_buffers(m, x) for m in (compiled, layer)))


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
    assert y.dtype == torch.float32
    assert_close(y, network.double()(x.double()), 16)


#: Trains a compiled layer whose networks have sizes that are no multiple of a vector's width; 5
#: times, as what is written past the end of a gradient is noticed when memory is freed.
TRAINING = """
import torch
from ilm_plugins import NORMS

compiled = torch.compile(NORMS[{name!r}](16, **{options!r}))
for _ in range(5):
    compiled(torch.randn(128, 16, 4, 4, requires_grad=True)).square().mean().backward()
"""


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param("EN", {"reduction": 8}, marks=pytest.mark.wide),
        *(
            pytest.param(name, {"num_groups": 4, **options}, marks=pytest.mark.long)
            for name, options in (
                ("ILMGN", {"key_group_size": 2, "hidden": 5}),
                ("AssocNorm", {"num_key_groups": 16, "hidden": 5}),
                ("AN", {"num_affine": 7}),
            )
        ),
    ],
)
def test_compiled_gradients_stay_within_their_memory(name, options):
    code = TRAINING.format(name=name, options=options)
    fresh.run([sys.executable, "-c", code], check=True)


# ---- models


def resnet(norm):
    """The first two stages of a ResNet-50, of one block each."""
    block = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(block, (1, 1, 1, 1), norm_layer=norm)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(512, 8)
    return model


@pytest.mark.wide
@pytest.mark.parametrize("record", [by_dynamo, by_export, by_trace])
@pytest.mark.parametrize("name", ["ILMGN", "EN"])
def test_a_model_for_any_batch_and_size(name, record):
    torch.manual_seed(0)
    model = resnet(NORMS[name])
    model(torch.randn(4, 3, 64, 64))
    images = [torch.randn(2, 3, 64, 64), torch.randn(3, 3, 96, 64)]
    assert_recorded_for(images, model.eval(), record)
