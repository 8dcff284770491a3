"""Layers and maps as hypothesis draws them, and what is asserted of them whatever it drew."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases import INDEPENDENT, SEED, channels_last, inputs, randomized
from ilm_plugins import NORMS
from ilm_plugins.layers.assoc import COMBINE
from ilm_plugins.layers.mixture import NORMALIZERS
from ilm_plugins.layers.projection import ACTIVATIONS

#: The same examples in every run, unless pytest's --seed asks for others.
usual = settings(
    derandomize=SEED == 0, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
AUTOENCODERS = ("ILMGN", "ILMIN", "ILMLN", "AssocNorm")


def for_any(names, few, many):
    """Decorate a property, a function of a layer's name and of hypothesis's source of data.

    It becomes a test of each layer, of few examples every day and of many where time allows.
    """
    examples = few, pytest.param(many, marks=pytest.mark.long)

    def decorate(check):
        @pytest.mark.parametrize("name", names)
        @pytest.mark.parametrize("number", examples, ids=["few", "many"])
        def test(name, number):
            def holds(data):
                check(name, data)

            holds.__name__ = check.__name__  # by which hypothesis seeds its examples
            settings(usual, max_examples=number)(given(st.data())(holds))()

        test.__doc__ = check.__doc__
        return test

    return decorate


def divisors(n):
    return st.sampled_from([d for d in range(1, n + 1) if n % d == 0])


def options(name, channels):
    """All options of a layer, and some of their values."""
    activation = st.sampled_from(sorted(ACTIVATIONS))
    found = {"eps": st.sampled_from([1e-5, 1e-3, 0.1])}
    if name not in ("ILMIN", "ILMLN"):
        found["num_groups"] = divisors(channels)
    if name == "AN":
        found |= {
            "num_affine": st.integers(1, 16),
            "init": st.sampled_from(["default", "identity"]),
        }
    elif name in AUTOENCODERS:
        found |= {"hidden": st.integers(1, 16), "init": st.sampled_from(INITS)}
    else:
        several = st.lists(st.sampled_from(NORMALIZERS), min_size=1, unique=True)
        found |= {"normalizers": several.map(tuple), "momentum": st.sampled_from([0.0, 0.1, 1.0])}
    if name == "AssocNorm":
        found["num_key_groups"] = divisors(channels)
        found["combine"] = st.sampled_from(sorted(COMBINE))
    elif name in AUTOENCODERS:
        found["key_group_size"] = divisors(channels)
        found["activations"] = st.tuples(activation, activation)
    elif name == "EN":
        found |= {
            "reduction": divisors(channels),
            "expansion": st.integers(1, 16),
            "ratio_net": st.sampled_from(["conv", "no_conv", "mlp"]),
            "activation": st.sampled_from(["tanh", "relu"]),
            "shared_affine": st.booleans(),
        }
    return st.fixed_dictionaries(found).map(_with_identity)


INITS = ("default", "normal", "identity")


def _with_identity(chosen):
    """The options, in which "identity" leaves no choice of some others."""
    if chosen.get("init") == "identity":
        forced = {"activations": ("tanh", "sigmoid"), "combine": "a(WE)+B"}
        chosen |= {name: value for name, value in forced.items() if name in chosen}
    return chosen


@st.composite
def layers(draw, name, channels, dtype=torch.float64, **fixed):
    """A layer with random options, parameters and running statistics, training or not."""
    chosen = {**draw(options(name, channels)), **fixed}
    make = partial(NORMS[name], channels, **chosen)
    return randomized(make, dtype, seed=draw(st.integers(0, 99))).train(draw(st.booleans()))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": channels_last,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a part": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
}
channel_counts = st.sampled_from([1, 4, 6, 12])
layouts = st.sampled_from(sorted(LAYOUTS)).map(LAYOUTS.get)


#: Up to three spatial dimensions, often of size 1.
short_sizes = st.lists(st.integers(1, 5), max_size=3)
#: From several vectors of a row to several blocks of positions.
long_sizes = st.tuples(st.integers(128, 700), st.integers(1, 2))
some_batches, some_sizes = st.integers(1, 5), st.one_of(short_sizes, long_sizes)


@st.composite
def maps(draw, channels, dtype=torch.float64, batches=some_batches, sizes=some_sizes):
    """A random map in a random layout."""
    shape = (draw(batches), channels, *draw(sizes))
    return draw(layouts)(inputs(*shape, dtype=dtype, seed=draw(st.integers(0, 99))))


@st.composite
def layers_and_maps(draw, name, **fixed):
    """A layer in float64, and a map for it."""
    channels = draw(channel_counts)
    return draw(layers(name, channels, **fixed)), draw(maps(channels))


def gradients(y, variables, seed=3):
    dy = inputs(*y.shape, seed=seed).to(y)
    return torch.autograd.grad(y, variables, dy)


def assert_same(actual, expected, tolerance):
    """Equal within a fraction of the largest value."""
    bound = tolerance * max(1, expected.abs().max().item())
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= bound


# ---- extreme values


def extreme(kind, x, dtype, largest):
    """x in another dtype, brought to the limits of what that can hold, or to ``largest``."""
    limits = torch.finfo(dtype)
    largest = min(limits.max, largest)
    unit = x / x.abs().max()
    return {
        "denormal": unit * limits.smallest_normal,
        "huge": unit * largest,
        "huge constant": torch.full_like(unit, largest),
        "huge mean": largest * (1 - 4 * limits.eps * unit.abs()),
        "zero": unit * 0,
        "one huge value": unit.where(unit == 1, 0) * largest,
    }[kind].to(dtype)


KINDS = ["denormal", "huge", "huge constant", "huge mean", "zero", "one huge value"]


@st.composite
def extremes(draw, name, dtypes, **of_maps):
    """A layer and an extreme map, where outputs and gradients are promised to be finite.

    Up to the fourth root of the largest number, 4e9 in float32, and in all of float16, unless that
    cannot hold what running statistics make of it. Where the activations are bounded: others
    multiply by the variance, out of the range of x.
    """
    dtype, channels = draw(st.sampled_from(dtypes)), draw(channel_counts)
    computed = torch.promote_types(dtype, torch.float32)
    bounded = st.tuples(*[st.sampled_from(["tanh", "sigmoid"])] * 2)
    fixed = {"activations": draw(bounded), "init": "default"} if name.startswith("ILM") else {}
    layer = draw(layers(name, channels, computed, **fixed))
    if dtype == torch.float16 and name not in INDEPENDENT:
        layer.train()
    kind, largest = draw(st.sampled_from(KINDS)), torch.finfo(computed).max ** 0.25
    return layer, draw(layouts)(extreme(kind, draw(maps(channels, **of_maps)), dtype, largest))


def assert_finite(layer, x):
    x.requires_grad_()
    y = layer(x)
    assert y.dtype == x.dtype and y.shape == x.shape
    for tensor in (y, *gradients(y, [x, *layer.parameters()]), *layer.buffers()):
        assert tensor.isfinite().all()
