"""What every norm must do: over all of NORMS, or ``pytest tests/contract.py --norm module:Class``.

A norm's constructor takes the number of channels, here 64, and has defaults for all else.
"""

import copy
import importlib
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import cases
import ilm_plugins
from cases import BACKENDS, KERNELS, every_backend, inputs, layouts, results
from close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, freeze, use_backend
from ilm_plugins.layers.mixture import MixtureNorm
from ilm_plugins.ops import backends, plain

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
    assert isinstance(layer, nn.GroupNorm) and layer.num_channels == C
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

    table, reference = ((root / "docs" / page).read_text() for page in ("layers.md", "api.md"))
    places = {
        "ilm_plugins.__all__": lambda key, norm: norm.__name__ in ilm_plugins.__all__,
        "tests/equations/cases.py": lambda key, norm: key in cases.CASES,
        "LAYERS of ilm_plugins/surgery/norms.py, or RULES of rules.py": (
            lambda key, norm: (norm in LAYERS) == any(key in rule.targets for rule in RULES)
        ),
        "docs/layers.md": lambda key, norm: f"| `{key}` | `{norm.__name__}` |" in table,
        "docs/api.md": lambda key, norm: f"autoclass:: {norm.__name__}\n" in reference,
    }
    ours = {key: n for key, n in NORMS.items() if n.__module__.startswith("ilm_plugins.")}
    lacking = [(key, p) for p, has in places.items() for key in ours if not has(key, ours[key])]
    assert not lacking, f"norms that are not in a place: {lacking}"


def test_unknown_options_and_unfit_inputs_are_told(norm):
    with pytest.raises(ValueError, match=r"unknown option 'group_count'; the options are .*eps"):
        norm(C, group_count=3)
    layer = norm(C)
    for shape, words in (
        ((2, 32, 4, 4), r"expected \(N, 64, \*\)"),
        ((2, 49, C), r"tokens.*layer\(x.movedim\(-1, 1\)\).movedim\(1, -1\)"),
        ((C, 8, 8), "add the dimension of the batch"),
        ((C, 49, C), "tokens"),
        ((C, 8, 8, 8), "build the layer with"),
    ):
        with pytest.raises(ValueError, match=words):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="int64, expected floating point"):
        layer(torch.zeros(2, C, 3, 3, dtype=torch.long))
    layer.bias = nn.Parameter(torch.ones(63))
    with pytest.raises(RuntimeError):
        layer(small())


def test_copies_and_state_dicts(norm):
    layer, x, file = random(norm).eval(), small(), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = norm(C).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    by_text = norm(**eval(f"dict({layer.extra_repr()})")).eval()
    by_text.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, by_text):
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
    for (key, value), fresh in zip(
        layer.state_dict().items(), norm(512).state_dict().values(), strict=True
    ):
        if (fresh == fresh.flatten()[0]).all():  # a constant; the others are random
            assert_equal(value, fresh, key)
        else:
            assert 0.5 < value.std().item() / fresh.std().item() < 2, key


def test_freezing_holds_every_tensor_of_the_layers_and_no_other(norm):
    model, x = nn.Sequential(nn.Conv2d(3, C, 1), random(norm)), small(2, 3, 4, 4)
    layer, expected = model[1], model.eval()(x)
    state = copy.deepcopy(layer.state_dict())
    assert freeze(model) is model
    y = model.train()(x)
    y.sum().backward()
    assert_close(y, expected)
    assert all(p.grad is None for p in layer.parameters()) and model[0].weight.grad is not None
    assert_equal(layer.state_dict(), state)
    assert copy.deepcopy(layer).frozen
    freeze(layer, False)
    model(x).square().sum().backward()
    assert layer.weight.grad is not None
    if isinstance(layer, MixtureNorm):
        assert not torch.equal(layer.running_mean, state["running_mean"])
        moved = layer.running_mean.clone()
        layer.requires_grad_(False)(small())  # fixes only the parameters, as in BatchNorm
        assert not torch.equal(layer.running_mean, moved)


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
                assert found.dtype == dtype and found.isfinite().all()


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


def test_strides_of_inputs_gradients_and_parameters_do_not_matter(norm):
    def strided(x):
        return torch.stack((x, torch.full_like(x, torch.nan)), -1)[..., 0]

    layer, x, dy = random(norm, torch.float64), small().double(), small(seed=2).double()
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter.data = strided(parameter.data)
    expected = results(copy.deepcopy(layer), x, dy)
    assert_close(results(layer, strided(x), dy), expected, EQUAL, name="strided x")
    assert_close(results(layer, x, strided(dy)), expected, EQUAL, name="strided dy")
    assert_close(results(other, x, dy), expected, EQUAL, name="strided parameters")
    nn.utils.parametrize.register_parametrization(other, "weight", nn.Identity())
    assert_close(other(x), expected[0], EQUAL)
    for whole in (x, x[..., 0], x.unsqueeze(-1)):
        part = cases.channels_last(torch.cat((whole, whole), 1))[:, :C]
        y = norm(C, dtype=torch.float64)(part)
        assert y.movedim(1, -1).is_contiguous() and not y.is_contiguous()


@pytest.mark.parametrize("shape", [(0, C), (0, C, 7, 7), (2, C, 0, 3)], ids=str)
def test_empty_input_gives_zero_gradients_to_every_parameter(norm, training, shape):
    layer = norm(C).train(training)
    before = copy.deepcopy(layer.state_dict())
    y, dx, *gradients = results(layer, torch.zeros(shape), torch.zeros(shape))
    assert y.shape == dx.shape == shape and not any(g.any() for g in gradients)
    assert_equal(layer.state_dict(), before)


# ---- numbers


@every_backend
def test_one_pixel_and_constant_maps_stay_finite(norm, training, backend):
    for x in (torch.randn(1, C, 1, 1), torch.full((2, C, 4, 4), 1e4), torch.zeros(1, C)):
        layer = norm(C).train(training)
        before = copy.deepcopy(layer.state_dict())
        assert all(t.isfinite().all() for t in results(layer, x, torch.ones_like(x), backend))
        assert len(x) > 1 or str(before) == str(layer.state_dict())


@every_backend
def test_deviations_up_to_two_to_the_52_are_standardized_and_larger_ones_give_nan(norm, backend):
    """As the docstring of AdaptiveNorm promises; nn.GroupNorm's outputs are 0 from 1e19 on."""
    for size in (8, 100):
        layer, x = norm(C), torch.randn(2, C, size, size).clamp(-1, 1)
        for p in layer.parameters():
            p.data.abs_()  # no network makes NaN of infinite variances by itself
        with use_backend(backend):
            found = layer(2**52 * x)
            for dtype in (torch.float32, torch.bfloat16):
                assert layer((1e25 * x).to(dtype)).isnan().all()
        with use_backend("reference"):
            assert_close(found, copy.deepcopy(layer).double()(2**52 * x.double()))


def test_large_means_cost_their_own_rounding_alone(norm, training):
    x = 1000 + torch.randn(4, C, 16, 16, generator=torch.Generator().manual_seed(0))
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
    assert x.nbytes <= cases.saved_bytes(layer, x) <= x.nbytes + moments + 64 * 256


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


@pytest.mark.parametrize("find", [backends.find_kernels, lambda x: plain, lambda x: None])
def test_buffers_may_change_before_the_backward_pass(norm, training, find, monkeypatch):
    """DistributedDataParallel broadcasts them at each forward pass; training moves them."""
    monkeypatch.setattr(backends, "find_kernels", find)
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


def test_gradients_of_each_sample_and_forward_mode(norm):
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
    step = small(seed=7).double()
    expected = torch.autograd.functional.jvp(layer, x, step)[1]
    assert_close(torch.func.jvp(layer, (x,), (step,))[1], expected, EQUAL)
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, step))
        assert_close(forward_ad.unpack_dual(dual).tangent, expected, EQUAL)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_recorded_by_trace_and_fx_and_compiled_with_one_graph(norm):
    layer, x, other = random(norm).eval(), small(), small(3, C, 5, 6)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=True, backend="eager")
    traced = torch.jit.trace(copy.deepcopy(layer), x, check_trace=False)
    for run in (compiled, traced):
        run(x)
        assert_close(run(other), layer(other))
    assert_close(make_fx(layer)(x)(x), layer(x))
    with pytest.raises(RuntimeError, match="first replace each layer"):
        torch.jit.script(nn.Sequential(layer))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(layer(torch.randn(2, C, 3, 3)), FakeTensor)


def test_torch_fx_records_the_layer_as_one_node(norm, training):
    model, x = nn.Sequential(nn.Conv2d(C, C, 1), random(norm)).train(training), small()
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert_equal(traced(x), model(x))
    assert_equal(traced.state_dict(), model.state_dict())


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


def test_some_parameters_fixed_and_several_backward_passes_at_once(norm):
    layer, x = random(norm, torch.float64), small().double().requires_grad_()
    y, dy = layer(x), inputs(4, *x.shape, seed=4)
    (together,) = torch.autograd.grad(y, x, dy, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in dy]
    assert_close(together, torch.stack(apart), EQUAL)
    trained, found = list(layer.parameters())[::2], []
    for parameter in list(layer.parameters())[1::2]:
        parameter.requires_grad_(False)
    for backend in BACKENDS:
        with use_backend(backend):
            found.append(torch.autograd.grad(layer(x).square().sum(), trained))
    assert_close(*found, EQUAL)
