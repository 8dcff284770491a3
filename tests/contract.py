"""What every norm must do: over all of NORMS, or ``pytest tests/contract.py --norm module:Class``.

A norm's constructor takes the number of channels, here 64, and has defaults for all else.
"""

import copy
import importlib
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import ilm_plugins
from benchmarks.measure import saved_bytes
from equations import cases
from equations.cases import BACKENDS, KERNELS, every_backend, inputs, layouts, results
from helpers.close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, freeze, use_backend
from ilm_plugins.layers.mixture import MixtureNorm
from ilm_plugins.ops.engine import backends, plain

C = 64


def pytest_generate_tests(metafunc):
    """Parametrize by ``norm``, a class, and by ``training`` where a norm has running statistics."""
    given = metafunc.config.getoption("--norm")
    norms = dict(NORMS)
    if given:
        module, _, name = given.partition(":")
        norms = {name: getattr(importlib.import_module(module), name)}
    if "training" in metafunc.fixturenames:
        pairs = [(n, True) for n in norms.values()]
        pairs += [(n, False) for n in norms.values() if issubclass(n, MixtureNorm)]
        ids = [f"{n.__name__}-{'train' if mode else 'eval'}" for n, mode in pairs]
        metafunc.parametrize("norm, training", pairs, ids=ids)
    elif "norm" in metafunc.fixturenames:
        metafunc.parametrize("norm", norms.values(), ids=norms)


def random(norm, dtype=torch.float32):
    """A layer whose tensors are random, but whose networks are not: these would saturate."""
    layer = cases.randomized(lambda: norm(C), dtype)
    torch.manual_seed(0)
    for child in layer.children():
        child.reset_parameters()
    return layer


def small(*shape, dtype=torch.float32, seed=1):
    return inputs(*(shape or (2, C, 4, 5)), dtype=dtype, seed=seed)


# ---- what frameworks and the rest of the package ask of a class


def test_is_a_group_norm_whose_matrices_sit_in_child_modules(norm):
    """Frameworks take the parameters of a norm itself out of the weight decay."""
    layer = norm(C)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_channels == C
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in layer.modules())
    # MMEngine's initializers look only at the names of direct bases.
    assert nn.GroupNorm in norm.__bases__
    own = dict(layer.named_parameters(recurse=False))
    assert own.keys() >= {"weight", "bias"}
    assert all(own[name].dim() <= 1 for name in own.keys() - {"weight", "bias"})


def test_every_norm_is_in_every_place(root):
    """A new norm of the package that misses a place fails here, by the name of the place."""
    from ilm_plugins.surgery.norms import LAYERS
    from ilm_plugins.surgery.rules import RULES

    table, reference = ((root / "docs" / page).read_text() for page in ("layers.md", "api.rst"))
    places = {
        "ilm_plugins.__all__": lambda key, norm: norm.__name__ in ilm_plugins.__all__,
        "tests/equations/cases.py": lambda key, norm: key in cases.CASES,
        "LAYERS of ilm_plugins/surgery/norms.py, or RULES of rules.py": (
            lambda key, norm: (norm in LAYERS) == any(key in rule.to for rule in RULES)
        ),
        "docs/layers.md": lambda key, norm: re.search(
            rf"^\| `{key}` \(`{norm.__name__}`\) \|", table, re.MULTILINE
        ),
        "docs/api.rst": lambda key, norm: f"\n.. autoclass:: {norm.__name__}\n" in reference,
    }
    ours = {key: n for key, n in NORMS.items() if n.__module__.startswith("ilm_plugins.")}
    lacking = [(key, p) for p, has in places.items() for key in ours if not has(key, ours[key])]
    assert not lacking, f"norms that are not in a place: {lacking}"


def test_timm_has_no_norm_of_its_key_or_class(norm):
    """A norm that is not registered will have its class's name as key."""
    pytest.importorskip("timm.layers", reason="needs timm")
    from ilm_plugins.frameworks.timm import conflicts

    keys = [key for key, registered in NORMS.items() if registered is norm] or [norm.__name__]
    told = [line for key in keys for line in conflicts(key, norm)]
    assert not told, "; ".join(told)


def test_an_unknown_option_is_named_with_the_known_ones(norm):
    with pytest.raises(ValueError, match=r"unknown option 'group_count'; the options are .*eps"):
        norm(C, group_count=3)


@pytest.mark.parametrize(
    "shape, words",
    [
        ((2, 32, 4, 4), r"expected \(N, 64, \*\)"),
        ((2, 49, C), r"tokens.*layer\(x.movedim\(-1, 1\)\).movedim\(1, -1\)"),
        ((C, 8, 8), "add the dimension of the batch"),
        ((C, 49, C), "tokens"),
        ((C, 8, 8, 8), "build the layer with"),
    ],
    ids=str,
)
def test_an_input_of_another_shape_is_refused_with_the_mend(norm, shape, words):
    with pytest.raises(ValueError, match=words):
        norm(C)(torch.zeros(shape))


def test_the_input_may_have_the_name_that_it_has_in_torchs_norms(norm):
    layer, x = norm(C).eval(), small()
    assert_equal(layer(input=x), layer(x))


def test_an_input_of_integers_is_refused(norm):
    with pytest.raises(ValueError, match="int64, expected floating point"):
        norm(C)(torch.zeros(2, C, 3, 3, dtype=torch.long))


def test_a_parameter_of_another_size_is_an_error(norm):
    layer = norm(C)
    layer.bias = nn.Parameter(torch.ones(63))
    with pytest.raises(RuntimeError):
        layer(small())


def by_state_dict(layer):
    """A new layer that loads what was saved of another."""
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = type(layer)(C).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded


def by_repr(layer):
    """A layer of the options that another prints, with its state dict."""
    built = type(layer)(**eval(f"dict({layer.extra_repr()})")).eval()
    built.load_state_dict(layer.state_dict())
    return built


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), by_state_dict, by_repr],
    ids=["deepcopy", "pickle", "state dict", "repr"],
)
def test_a_copy_is_the_same_layer(norm, copied):
    layer, x = random(norm).eval(), small()
    other = copied(layer)
    assert_equal(other(x), layer(x))
    assert repr(other) == repr(layer)


def test_layers_made_on_the_meta_device_can_be_initialized_later(norm):
    layer = norm(512, device="meta", dtype=torch.bfloat16)
    tensors = filter(torch.is_floating_point, layer.state_dict().values())
    assert {(t.dtype, t.device.type) for t in tensors} == {(torch.bfloat16, "meta")}
    assert layer(torch.empty(2, 512, 3, device="meta", dtype=torch.bfloat16)).is_meta
    layer = layer.float().to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(123)
    layer.reset_parameters()
    assert_initialized(layer)


def assert_initialized(layer, keys=None):
    """Assert that a layer's tensors, or those of some keys, are as in a new layer."""
    options = {"init": layer.init} if hasattr(layer, "init") else {}
    new = type(layer)(layer.num_channels, **options).state_dict()
    for key, value in layer.state_dict().items():
        if keys is not None and key not in keys:
            continue
        if (new[key] == new[key].flatten()[0]).all():  # a constant; the others are random
            assert_equal(value, new[key], key)
        else:
            assert 0.5 < value.std().item() / new[key].std().item() < 2, key


@pytest.fixture
def frozen(norm):
    """A convolution and a frozen layer, in training."""
    return freeze(nn.Sequential(nn.Conv2d(3, C, 1), random(norm))).train()


def test_freezing_gives_the_model_back(norm):
    model = nn.Sequential(norm(C))
    assert freeze(model) is model


def test_a_frozen_layer_computes_in_training_what_it_computes_in_evaluation(frozen):
    x = small(2, 3, 4, 4)
    assert_close(frozen(x), copy.deepcopy(frozen).eval()(x))


def test_freezing_holds_every_tensor_of_the_layers(frozen):
    before = copy.deepcopy(frozen[1].state_dict())
    frozen(small(2, 3, 4, 4)).sum().backward()
    assert_equal(frozen[1].state_dict(), before)
    assert all(p.grad is None for p in frozen[1].parameters())


def test_freezing_holds_no_other_module(frozen):
    frozen(small(2, 3, 4, 4)).sum().backward()
    assert frozen[0].weight.grad is not None


def test_a_copy_of_a_frozen_layer_is_frozen(frozen):
    assert copy.deepcopy(frozen[1]).frozen


def test_a_layer_that_is_no_longer_frozen_is_trained(frozen):
    freeze(layer := frozen[1], False)
    before = copy.deepcopy(layer.state_dict())
    frozen(small(2, 3, 4, 4)).square().sum().backward()
    assert layer.weight.grad is not None
    if isinstance(layer, MixtureNorm):
        assert not torch.equal(layer.running_mean, before["running_mean"])


def test_fixed_parameters_do_not_fix_running_statistics(norm):
    """As in BatchNorm."""
    layer = random(norm).requires_grad_(False)
    before = copy.deepcopy(dict(layer.named_buffers()))
    layer(small())
    for name in before.keys() & {"running_mean", "running_variance"}:
        assert not torch.equal(getattr(layer, name), before[name]), name


#: The backends of C++ and of torch's operations, and the reference.
each_way = pytest.mark.parametrize("find", [backends._find_cpu, lambda x: plain, lambda x: None])


@each_way
def test_a_fixed_parameter_has_no_gradient_and_changes_no_other(norm, training, find, monkeypatch):
    """Each alone is fixed, and each alone is trained, without a gradient of x."""
    monkeypatch.setattr(backends, "_find_cpu", find)
    layer, x, dy = random(norm).double().train(training), small().double(), small(seed=2).double()
    names = [name for name, _ in layer.named_parameters()]
    expected = dict(zip(["x", *names], results(layer, x, dy)[1:], strict=True))
    for trained in [{"x", *names} - {name} for name in names] + [{name} for name in names]:
        twin, leaf = copy.deepcopy(layer), x.clone().requires_grad_("x" in trained)
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(name in trained)
        twin(leaf).backward(dy)
        found = {name: p.grad for name, p in [("x", leaf), *twin.named_parameters()]}
        assert {name for name in found if found[name] is not None} == trained
        for name in trained:
            assert_close(found[name], expected[name], EQUAL, name=name)


# ---- backends, dtypes, layouts


@layouts
def test_every_dtype_is_computed_in_float32_or_better(norm, training, layout):
    """Squares of 300 overflow float16; shapes are of vectors and of odd sizes."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        layer = random(norm, torch.promote_types(dtype, torch.float32)).train(training)
        for shape, size in (((3, C), 1), ((2, C, 17, 31), 1), ((2, C, 7, 9), 300)):
            layer.eps = 1.0 if len(shape) == 2 else 1e-5
            x, dy = (layout(size * small(*shape, seed=seed)).to(dtype) for seed in (1, 2))
            cases.assert_exact(layer, x, dy, KERNELS)
            for found in results(copy.deepcopy(layer).to(dtype), x, dy / size)[:2]:
                assert found.dtype == dtype
                assert found.isfinite().all()


def test_autocast_changes_nothing(norm):
    found, x = [], small()
    for forward, backward in ((False, False), (True, False), (False, True)):
        layer, leaf = random(norm), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            loss = layer(leaf).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            loss.backward()
        found.append([loss, leaf.grad, *(p.grad for p in layer.parameters())])
    assert_equal(found[1:], [found[0]] * 2)


def strided(x):
    return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]


@pytest.mark.parametrize("which", ["input", "gradient", "parameters"])
def test_strides_do_not_matter(norm, which):
    layer, x, dy = random(norm, torch.float64), small().double(), small(seed=2).double()
    expected = results(copy.deepcopy(layer), x, dy)
    if which == "input":
        x = strided(x)
    elif which == "gradient":
        dy = strided(dy)
    else:
        for parameter in layer.parameters():
            parameter.data = strided(parameter.data)
    assert_close(results(layer, x, dy), expected, EQUAL)


def test_a_parametrized_weight_is_computed(norm):
    layer, x = random(norm, torch.float64), small().double()
    expected = layer(x)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert_close(layer(x), expected, EQUAL)


@pytest.mark.parametrize("shape", [(2, C, 4, 5), (2, C, 4), (2, C, 4, 5, 1)], ids=str)
def test_a_part_of_the_channels_of_a_channels_last_map_gives_a_channels_last_map(norm, shape):
    whole = small(*shape).double()
    part = cases.channels_last(torch.cat((whole, whole), 1))[:, :C]
    y = norm(C, dtype=torch.float64)(part)
    assert y.movedim(1, -1).is_contiguous()
    assert not y.is_contiguous()


@pytest.mark.parametrize("shape", [(0, C), (0, C, 7, 7), (2, C, 0, 3)], ids=str)
def test_empty_input_gives_zero_gradients_to_every_parameter(norm, training, shape):
    layer = norm(C).train(training)
    before = copy.deepcopy(layer.state_dict())
    y, dx, *gradients = results(layer, torch.zeros(shape), torch.zeros(shape))
    assert y.shape == dx.shape == shape
    assert not any(g.any() for g in gradients)
    assert_equal(layer.state_dict(), before)


# ---- numbers


@every_backend
@pytest.mark.parametrize("value", [0.0, 1e4])
def test_constant_maps_stay_finite(norm, training, backend, value):
    layer, x = norm(C).train(training), torch.full((2, C, 4, 4), value)
    assert all(t.isfinite().all() for t in results(layer, x, torch.ones_like(x), backend))


@every_backend
@pytest.mark.parametrize("shape", [(1, C, 1, 1), (1, C)], ids=str)
def test_a_single_value_of_each_channel_stays_finite(norm, training, backend, shape):
    layer, x = norm(C).train(training), torch.randn(shape)
    assert all(t.isfinite().all() for t in results(layer, x, torch.ones_like(x), backend))


@every_backend
@pytest.mark.parametrize("shape", [(1, C, 1, 1), (1, C)], ids=str)
def test_a_single_value_of_each_channel_moves_no_running_statistics(norm, backend, shape):
    """It has no variance."""
    layer = norm(C)
    before = copy.deepcopy(layer.state_dict())
    with use_backend(backend):
        layer(torch.randn(shape))
    assert_equal(layer.state_dict(), before)


def bounded(norm):
    """A layer whose networks make no NaN of infinite variances by themselves."""
    layer = norm(C)
    for parameter in layer.parameters():
        parameter.data.abs_()
    return layer


@every_backend
@pytest.mark.parametrize("size", [8, 100])
def test_deviations_up_to_two_to_the_52_are_standardized(norm, backend, size):
    """As the docstring of AdaptiveNorm promises."""
    layer, x = bounded(norm), 2**52 * torch.randn(2, C, size, size).clamp(-1, 1)
    twin = copy.deepcopy(layer).double()
    with use_backend(backend):
        found = layer(x)
    with use_backend("reference"):
        assert_close(found, twin(x.double()))


@every_backend
@pytest.mark.parametrize("size", [8, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deviations_whose_squares_overflow_give_nan(norm, backend, size, dtype):
    """nn.GroupNorm's outputs are 0 there."""
    x = 1e25 * torch.randn(2, C, size, size).clamp(-1, 1)
    with use_backend(backend):
        assert bounded(norm)(x.to(dtype)).isnan().all()


@layouts
def test_large_means_cost_their_own_rounding_alone(norm, training, layout):
    """In channels last, torch's GroupNorm on the CPU loses all digits (2.11)."""
    x = layout(1000 + torch.randn(4, C, 16, 16, generator=torch.Generator().manual_seed(0)))
    layer = random(norm)
    if isinstance(layer, MixtureNorm):
        layer.running_mean.fill_(1000)
    layer.train(training)
    dy = small(*x.shape, seed=5)
    exact = results(copy.deepcopy(layer).double(), x.double(), dy.double(), "reference")
    for backend in BACKENDS:  # the mean rounds to 2^10 units of the deviation, its square to 2^20
        found = results(copy.deepcopy(layer), x, dy, backend)
        assert_close(found[:2], exact[:2], 2**14, name=backend)


@layouts
@every_backend
def test_instances_do_not_depend_on_their_batch(norm, backend, layout):
    layer = norm(2048).eval()
    x = layout(1000 + small(7, 2048, 7, 7))
    with use_backend(backend), torch.no_grad():
        together, apart = layer(x), torch.cat([layer(instance) for instance in x.split(1)])
    assert_equal(together, apart)


@every_backend
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_only_statistics_of_the_batch_spread_a_nan(norm, training, backend, value):
    layer, x = norm(C).train(training), torch.randn(3, C, 4, 4)
    x[1, 0, 0, 0] = value
    dy = torch.stack((torch.ones(C, 4, 4), *torch.zeros(2, C, 4, 4)))
    y, dx, *_ = results(layer, x, dy, backend)
    spreads = training and isinstance(layer, MixtureNorm)
    expected = [False] * 3 if spreads else [True, False, True]
    for found in (y, dx):
        assert [bool(instance.isfinite().all()) for instance in found] == expected
    for key, buffer in layer.named_buffers():
        assert bool(buffer.isfinite().all()) != (spreads and key.startswith("running"))


# ---- memory and the host


@layouts
def test_x_and_moments_alone_are_saved_for_the_backward_pass(norm, layout):
    x = layout(torch.randn(2, 256, 20, 20)).requires_grad_()
    layer = norm(256)
    moments = 2 * 4 * len(x) * layer.moment_groups
    assert x.nbytes <= saved_bytes(layer, layer, x) <= x.nbytes + moments + 64 * 256


class NoSynchronization(TorchDispatchMode):
    """Raises where a result would have to be known on the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, func
        return func(*args, **(kwargs or {}))


@every_backend
def test_the_host_never_waits_for_a_result(norm, backend):
    layer, x = norm(C), small().requires_grad_()
    with NoSynchronization(), use_backend(backend):
        layer(x).sum().backward()


@each_way
def test_buffers_may_change_before_the_backward_pass(norm, training, find, monkeypatch):
    """DistributedDataParallel broadcasts them at each forward pass; training moves them."""
    monkeypatch.setattr(backends, "_find_cpu", find)
    layer, x, found = random(norm).train(training), small(), []
    for written in (False, True):
        twin, leaf = copy.deepcopy(layer), x.clone().requires_grad_()
        loss = twin(leaf).square().sum()
        if written:
            twin.train()(x + 1)
            for buffer in twin.buffers():
                buffer.add_(1)
        found.append(torch.autograd.grad(loss, [leaf, *twin.parameters()]))
    assert_equal(*found)


# ---- transforms, wrappers, export


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_an_ensemble_by_vmap_is_its_members(norm, training):
    """Training included: each member moves its own running statistics."""
    members, x = [norm(C).train(training) for _ in range(3)], small()
    for member in members:
        nn.init.normal_(member.weight)
    parameters, buffers = stack_module_state(members)
    buffers = {n: b.clone() for n, b in buffers.items()}
    together = vmap(lambda p, b: functional_call(members[0], (p, b), (x,)))(parameters, buffers)
    assert_close(together, torch.stack([member(x) for member in members]))
    assert_close(buffers, stack_module_state(members)[1])


def test_gradients_of_each_sample_are_those_of_the_sample_alone(norm):
    layer, x = norm(C).eval().double(), small().double()
    state = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample.unsqueeze(0),)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(state, x)
    for i, sample in enumerate(x):
        expected = torch.autograd.grad(layer(sample[None]).square().sum(), [*layer.parameters()])
        largest = max(g.abs().max().item() for g in expected)  # of which the others are differences
        found = [g[i] for g in together.values()]
        assert_close(found, expected, 2**16, largest, f"sample {i}")


def by_jvp(layer, x, step):
    return torch.func.jvp(layer, (x,), (step,))[1]


def by_dual_numbers(layer, x, step):
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, step))
        return forward_ad.unpack_dual(dual).tangent.clone()


@pytest.mark.parametrize("differentiate", [by_jvp, by_dual_numbers])
def test_forward_mode_gives_the_derivative(norm, differentiate):
    layer, x, step = norm(C).eval().double(), small().double(), small(seed=7).double()
    expected = torch.autograd.functional.jvp(layer, x, step)[1]
    assert_close(differentiate(layer, x, step), expected, EQUAL)


def compiled(layer):
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "record",
    [lambda layer, x: compiled(layer), lambda *args: torch.jit.trace(*args, check_trace=False)],
    ids=["compile", "trace"],
)
def test_a_record_of_one_graph_computes_maps_of_another_size(norm, record):
    layer, x, other = random(norm).eval(), small(), small(3, C, 5, 6)
    run = record(copy.deepcopy(layer), x)
    run(x)
    assert_close(run(other), layer(other))


def test_make_fx_records_the_operations(norm):
    layer, x = random(norm).eval(), small()
    assert_close(make_fx(layer)(x)(x), layer(x))


def test_torch_jit_script_is_refused_with_the_mend(norm):
    with pytest.raises(RuntimeError, match="first replace each layer"):
        torch.jit.script(nn.Sequential(norm(C)))


def test_a_fake_input_gives_a_fake_output(norm):
    layer = norm(C).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(layer(torch.randn(2, C, 3, 3)), FakeTensor)


def test_torch_fx_records_the_layer_as_one_node(norm, training):
    model, x = nn.Sequential(nn.Conv2d(C, C, 1), random(norm)).train(training), small()
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert_equal(traced(x), model(x))
    assert_equal(traced.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["forward_pre", "forward"])
def test_torch_fx_leaves_hooks_to_the_graph(norm, kind):
    model, x = nn.Sequential(nn.Conv2d(C, C, 1), random(norm)).eval(), small()
    calls = []

    def hook(module, inputs, *output):
        calls.append(inputs[0].mean().item())
        return 2 * (*inputs, *output)[-1]

    getattr(model[1], f"register_{kind}_hook")(hook)
    traced = torch.fx.symbolic_trace(model)
    assert calls == []
    assert_equal(traced(x), model(x))
    assert len(calls) == 2


def test_torch_fx_records_a_subclass_with_its_forward(norm):
    def residual(self, x):
        return x + super(type(self), self).forward(x)

    layer = random(norm)
    layer.__class__ = type("Residual", (type(layer),), {"forward": residual})
    model, x = nn.Sequential(nn.Conv2d(C, C, 1), layer).eval(), small()
    assert_equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_torch_fx_says_that_a_layer_cannot_be_traced_alone(norm):
    with pytest.raises(RuntimeError, match=r"such as torch.nn.Sequential\(layer\)"):
        torch.fx.symbolic_trace(norm(C))


def test_functions_that_fuse_batch_norm_find_no_running_var(norm):
    """They would forget all normalizers but BN; torch's takes any module with its attributes."""
    with pytest.raises(AttributeError, match="running_"):
        nn.utils.fuse_conv_bn_eval(nn.Conv2d(3, C, 3).eval(), norm(C).eval())


def test_parameters_that_are_subclasses_of_tensor_are_the_references(norm):
    layer, x = random(norm).eval(), small()
    expected = layer(x)
    for module in layer.modules():
        for key, p in module._parameters.items():
            if p is not None:
                module._parameters[key] = nn.Parameter(TwoTensor(p.detach(), p.detach()))
    assert_close(layer(x).a, expected)


def test_several_backward_passes_at_once_are_those_one_by_one(norm):
    layer, x = random(norm, torch.float64), small().double().requires_grad_()
    y, dy = layer(x), inputs(4, *x.shape, seed=4)
    (together,) = torch.autograd.grad(y, x, dy, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in dy]
    assert_close(together, torch.stack(apart), EQUAL)
