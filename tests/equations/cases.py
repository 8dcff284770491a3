"""Every layer, with every switch of the papers' tables, beside its transcription; its inputs."""

import copy
import inspect
import os
from contextlib import nullcontext
from functools import partial
from itertools import pairwise, product
from unittest import mock

import pytest
import torch

from equations import transcription
from helpers.close import EQUAL, ROUNDINGS, assert_close
from ilm_plugins import NORMS, use_backend
from ilm_plugins.layers.assoc import COMBINE
from ilm_plugins.layers.mixture import NORMALIZERS, MixtureNorm
from ilm_plugins.layers.projection import ACTIVATIONS, project
from ilm_plugins.ops import cpu
from ilm_plugins.ops.engine.activation import Activation

#: The backend of the compiled C++ kernels; where they are not built, what takes their place.
KERNELS = "cpu" if cpu.is_built() else "auto"
BACKENDS = KERNELS, "reference"
every_backend = pytest.mark.parametrize("backend", BACKENDS)
#: The instruction sets that the processor has, of those for which the kernels are compiled.
INSTRUCTION_SETS = ("default", "avx2", "avx512")
INSTRUCTION_SETS = INSTRUCTION_SETS[: 1 + INSTRUCTION_SETS.index(cpu.instruction_set())]
needs_kernels = pytest.mark.skipif(not cpu.is_built(), reason="needs the compiled kernels")
#: The layers that mix statistics, in training those of the batch.
MIXTURES = [name for name, norm in NORMS.items() if issubclass(norm, MixtureNorm)]
#: The layers that describe their equations to kernels, as a layer may.
DESCRIBED = [name for name, norm in NORMS.items() if norm.network is not None]
INDEPENDENT = [name for name in NORMS if name not in MIXTURES]
#: One layer of each path through the code, for what layouts and dtypes change.
PATHS = "ILMGN", "EN", "SN", "AN"

CHANNELS = 12
#: Of all random numbers here; pytest's --seed.
SEED = 1000 * int(os.environ.get("ILM_PLUGINS_TEST_SEED", "0"))


def attributes_of(layer, *names):
    """What the transcription of a layer takes by name."""
    options = {name: getattr(layer, name) for name in ("num_groups", "eps", *names)}
    if not layer.training and getattr(layer, "running_mean", None) is not None:
        options |= {"running_mean": layer.running_mean, "running_var": layer.running_variance}
    return options


def parameters_of(layer):
    """A layer's parameters by the names that the transcriptions give them."""
    named = dict(layer.named_parameters())
    matrices = {name for name in named if f"{name.removesuffix('weight')}bias" not in named}
    return {
        (name.removesuffix(".weight") if name in matrices else name).replace(".", "_"): parameter
        for name, parameter in named.items()
    }


def by_ilm(layer, x):
    options = attributes_of(layer, "activations", "omega_offset")
    key_group_size = layer.num_channels // layer.num_key_groups
    options |= parameters_of(layer)
    return transcription.ilm_norm(x, key_group_size=key_group_size, **options)


def by_assoc(layer, x):
    options = attributes_of(layer, "num_key_groups", "combine", "omega_offset")
    return transcription.assoc_norm(x, **parameters_of(layer), **options)


def exemplar_with_ratios(layer, x):
    """The output of EN, and its ratios, by the transcription."""
    options = attributes_of(layer, "normalizers", "reduction")
    options["activation"] = getattr(layer, "activation", "tanh")
    return transcription.exemplar_norm(x, **parameters_of(layer), **options)


def by_exemplar(layer, x):
    return exemplar_with_ratios(layer, x)[0]


def by_switch(layer, x, **options):
    options |= attributes_of(layer, "normalizers")
    return transcription.switch_norm(x, **parameters_of(layer), **options)


def by_sparse(layer, x):
    fixed = iter((layer.mean_fixed, layer.var_fixed))  # zeros while they are not

    def to_ratios(logits):
        ratios = next(fixed)
        return ratios if ratios.any() else transcription.sparsestmax(logits, layer.radius.item())

    return by_switch(layer, x, to_ratios=to_ratios)


def by_attentive(layer, x):
    return transcription.attentive_norm(x, **parameters_of(layer), **attributes_of(layer))


def sparse(radius=0.3, fixed=0, **options):
    layer = NORMS["SSN"](CHANNELS, **options)
    layer.set_radius(radius)
    layer.mean_fixed[:fixed] = 1
    return layer


class ReLUExemplar(NORMS["EN"], torch.nn.GroupNorm):
    """A subclass of EN whose equations no kernel computes: ReLU in place of tanh."""

    activation = "relu"

    def predict_ratios(self, mean, normalized_means, t):
        features = self.correlate(normalized_means, t).flatten(1)
        hidden = project(features, t.expand_weight, t.expand_bias).relu()
        return project(hidden, t.ratio_weight, t.ratio_bias).softmax(1)


ilm = partial(NORMS["ILMGN"], CHANNELS, 4, key_group_size=3, hidden=3)
assoc = partial(NORMS["AssocNorm"], CHANNELS, 4, num_key_groups=6, hidden=3)
exemplar = partial(NORMS["EN"], CHANNELS, reduction=4, expansion=3)
switch = partial(NORMS["SN"], CHANNELS)
attentive = partial(NORMS["AN"], CHANNELS, 4, num_affine=3)
FOUR = {"normalizers": ["GN", "BN", "LN", "IN"], "num_groups": 3}

#: name -> (constructor of a layer of 12 channels, the same layer by its paper's equations)
CASES = {
    "ILMGN": (ilm, by_ilm),
    "ILMGN-identity": (partial(ilm, init="identity"), by_ilm),
    "ILMGN-key-groups-of-1": (partial(ilm, key_group_size=1), by_ilm),
    "ILMGN-key-groups-across-groups": (partial(ilm, key_group_size=2, hidden=None), by_ilm),
    "ILMGN-key-groups-coarser": (partial(NORMS["ILMGN"], CHANNELS, 6, key_group_size=6), by_ilm),
    "ILMGN-eps": (partial(ilm, eps=0.1), by_ilm),
    "ILMIN": (partial(NORMS["ILMIN"], CHANNELS, key_group_size=3), by_ilm),
    "ILMLN": (partial(NORMS["ILMLN"], CHANNELS, key_group_size=3), by_ilm),
    "AssocNorm": (assoc, by_assoc),
    "AssocNorm-identity": (partial(assoc, init="identity"), by_assoc),
    "AssocNorm-key-groups-of-1": (partial(assoc, num_key_groups=None), by_assoc),
    "EN": (exemplar, by_exemplar),
    "EN-GN": (partial(exemplar, **FOUR), by_exemplar),
    "EN-relu": (partial(ReLUExemplar, CHANNELS, reduction=4, expansion=3), by_exemplar),
    "EN-without-BN": (partial(exemplar, normalizers=("IN", "LN")), by_exemplar),
    "SN": (switch, by_switch),
    "SN-GN": (partial(switch, normalizers=("LN", "GN"), num_groups=6), by_switch),
    "SSN": (sparse, by_sparse),
    "SSN-GN": (partial(sparse, 0.5, **FOUR), by_sparse),
    "SSN-one-hot": (partial(sparse, 1.0), by_sparse),
    "SSN-fixed": (partial(sparse, fixed=1), by_sparse),
    "AN": (attentive, by_attentive),
    "AN-identity": (partial(attentive, init="identity"), by_attentive),
    "AN-one-pair": (partial(attentive, num_affine=1), by_attentive),
    "AN-groups-of-1": (partial(NORMS["AN"], CHANNELS, CHANNELS), by_attentive),
    "AN-eps": (partial(attentive, eps=0.1), by_attentive),
}
#: With the default, the first pair, each activation once in each place.
for pair in [*pairwise([*ACTIVATIONS, "tanh"])][1:]:
    CASES["ILMGN-" + "-".join(pair)] = (partial(ilm, activations=[*pair]), by_ilm)
for combine in ("a(WE)", "a(WE+B)", "a(WE)*B"):
    CASES[f"AssocNorm-{combine}"] = (partial(assoc, combine=combine), by_assoc)

#: Cases that kernels compute whole: all but other activations and combinations.
IN_KERNELS = [name for name, (make, _) in CASES.items() if make().describe() is not None]

#: Cases that are evaluated, too: their running statistics make that another computation.
WITH_RUNNING = ["EN", "EN-GN", "EN-relu", "SN", "SSN"]


def modes(names):
    """Parametrize by name and training; evaluation only of layers in which it differs."""
    pairs = [(n, mode) for n in names for mode in (True, False) if mode or n in WITH_RUNNING]
    ids = [f"{name}-{'train' if mode else 'eval'}" for name, mode in pairs]
    return pytest.mark.parametrize("name, training", pairs, ids=ids)


def drawn_options(r, name, channels):
    """All options of a layer, by the names in its signature, drawn by a random.Random."""
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]

    def mostly(usual, *others):  # kernels compute only the usual form
        return usual if r.random() < 0.75 else r.choice(others)

    pairs = [*product(sorted(ACTIVATIONS), repeat=2)]
    values = {
        "eps": lambda: r.choice([1e-5, 1e-3, 0.1]),
        "num_groups": lambda: r.choice(divisors),
        "normalizers": lambda: tuple(r.sample(NORMALIZERS, r.randint(1, len(NORMALIZERS)))),
        "momentum": lambda: r.choice([0.0, 0.1, 1.0]),
        "num_affine": lambda: r.randint(1, 20),
        "hidden": lambda: r.randint(1, 20),
        "num_key_groups": lambda: r.choice(divisors),
        "combine": lambda: mostly("a(WE)+B", *sorted(COMBINE)),
        "key_group_size": lambda: r.choice(divisors),
        "activations": lambda: mostly(("tanh", "sigmoid"), *pairs),
        "reduction": lambda: r.choice(divisors),
        "expansion": lambda: r.randint(1, 16),
    }
    taken = inspect.signature(NORMS[name]).parameters
    return {option: draw() for option, draw in values.items() if option in taken}


def randomized(make, dtype=torch.float64, seed=0):
    """A layer whose every parameter and running statistic is random, none at its initial value."""
    generator = torch.Generator().manual_seed(SEED + seed)
    layer = make().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for name, buffer in layer.named_buffers():
            if name == "running_mean":
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name == "running_variance":
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return layer


def inputs(*shape, dtype=torch.float64, seed=1):
    """Random input whose channels differ in mean and in deviation."""
    generator = torch.Generator().manual_seed(SEED + seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    per_channel = (1, shape[1]) + (1,) * (len(shape) - 2)
    scale = torch.rand(per_channel, generator=generator, dtype=torch.float64) + 0.5
    shift = torch.randn(per_channel, generator=generator, dtype=torch.float64)
    return (x * scale + shift).to(dtype)


def channels_last(x):
    """The same values in memory as (N, *, C)."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


layouts = pytest.mark.parametrize(
    "layout", [torch.Tensor.contiguous, channels_last], ids=["NCHW", "NHWC"]
)


def wide(*values):
    """Values of a parameter that are tested beside the everyday ones."""
    return pytest.param(*values, marks=pytest.mark.wide)


def results(layer, x, dy, backend=None):
    """The output, and the gradients of x and of all parameters, under a backend."""
    x = x.detach().requires_grad_()
    with use_backend(backend) if backend else nullcontext():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


#: Every activation that the layers apply themselves, and where its slope jumps.
FUSED = {
    Activation("relu"): (0,),
    Activation("relu6"): (0, 6),
    Activation("leaky_relu", 0.1): (0,),
    Activation("silu"): (),
    Activation("hardswish"): (-3, 3),
}


def without_jumps(layer, x, dy):
    """dy, but 0 where rounding chooses the slope of the layer's activation."""
    twin = copy.deepcopy(layer).double()
    twin.fused_activation = None
    with torch.no_grad(), use_backend("reference"):
        z = twin(x.double())
    near = 1e-3 * z.abs().max() + 6 * torch.finfo(x.dtype).eps
    is_near = [(z - jump).abs() < near for jump in FUSED[layer.fused_activation]]
    return dy.masked_fill(torch.stack(is_near).any(0), 0) if is_near else dy


def compiled_for(instructions):
    """Let the C++ kernels for an instruction set run, within a context."""
    return mock.patch.object(cpu, "instruction_set", lambda: instructions)


def named_results(layer, x, dy, backend):
    """The results of a layer by name, and its buffers after the forward pass."""
    twin = copy.deepcopy(layer)
    names = "y", "dx", *(f"d_{name}" for name, _ in layer.named_parameters())
    found = dict(zip(names, results(twin, x, dy, backend), strict=True))
    return found | dict(twin.named_buffers())


def assert_kernels_equal_the_reference(layer, x, dy):
    """Compare all results in float64, of the C++ kernels by each instruction set."""
    found = {"reference": named_results(layer, x, dy, "reference")}
    for instructions in INSTRUCTION_SETS:
        with compiled_for(instructions):
            found[instructions] = named_results(layer, x, dy, KERNELS)
    exact = named_results(layer, x.contiguous(), dy.contiguous(), "reference")
    # A parameter's gradient may be 0 as the difference of sums of such terms over the map.
    terms = max(1, (dy * exact["y"]).norm().item())
    for by, values in found.items():
        for name in exact:
            scale = terms if name.startswith("d_") else 1
            assert_close(values[name], exact[name], 10 * EQUAL, scale, f"{name} by {by}")


def assert_exact(layer, x, dy, backend, roundings=ROUNDINGS):
    """Compare results with the reference's in float64, by roundings of the terms of all sums.

    The C++ kernels run for each instruction set.

    Terms that cancel are as large as a result's change, per relative change of all operands: each
    is multiplied by 1 + h or 1 - h, at random. Parameters have sums over the map for gradients,
    whose rounding grows with the Euclidean norm of the terms.
    """
    twin, h, signs = copy.deepcopy(layer).double(), 2**-20, torch.Generator().manual_seed(0)
    double = copy.deepcopy(twin)
    maps = [t.double().clone() for t in (x, dy)]
    exact = results(double, *maps, "reference")
    operands = [*maps, *twin.parameters(), *twin.buffers()]
    for tensor in filter(torch.is_floating_point, operands):
        sign = 2 * torch.randint(2, tensor.shape, generator=signs).to(tensor.device) - 1
        tensor.detach().mul_(1 + h * sign)
    moved = results(twin, *maps, "reference")
    terms = (dy.double() * exact[0]).norm().item()
    names = ["y", "dx", *(name for name, _ in layer.named_parameters())]
    for instructions in INSTRUCTION_SETS if backend == "cpu" else [None]:
        own = copy.deepcopy(layer)
        with compiled_for(instructions) if instructions else nullcontext():
            found = results(own, x, dy, backend)
        by = instructions or backend
        assert_close(dict(own.named_buffers()), dict(double.named_buffers()), name=by)
        for name, actual, expected, other in zip(names, found, exact, moved, strict=True):
            # A gradient may vanish as a difference of equal terms, which then do not change it.
            scale = max((other - expected).abs().max().item() / h, 2**-20)
            if name not in ("y", "dx"):
                scale = max(scale, terms)
            assert_close(actual, expected, roundings, scale, f"{name} by {by}")
        if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
            assert found[0].stride() == found[1].stride() == x.stride()
        assert found[0].dtype == found[1].dtype == x.dtype
