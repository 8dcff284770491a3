"""What holds for every shape, dtype, layout and option: cases that hypothesis generates."""

import copy
import inspect
from functools import partial

import pytest
import torch

from equations import cases
from equations.cases import (
    BACKENDS,
    CASES,
    CHANNELS,
    INSTRUCTION_SETS,
    SEED,
    compiled_for,
    inputs,
    randomized,
)
from ilm_plugins import NORMS

pytest.importorskip("hypothesis", reason="needs hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: The same examples in every run, unless pytest's --seed asks for others.
usual = settings(
    derandomize=SEED == 0, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def for_any(names, few=15, many=500):
    """Decorate a property of a layer's name and hypothesis's data; ``many`` are for long tests."""

    def decorate(check):
        @pytest.mark.parametrize("name", names)
        @pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.long)])
        def test(name, number):
            def holds(data):
                check(name, data)

            holds.__name__ = check.__name__  # by which hypothesis seeds its examples
            settings(usual, max_examples=number)(given(st.data())(holds))()

        return test

    return decorate


# ---- layers and maps


@st.composite
def layers(draw, name, channels, dtype=torch.float64, **fixed):
    """A layer with random options, parameters and running statistics, training or not."""
    drawn = cases.drawn_options(draw(st.randoms(use_true_random=False)), name, channels)
    make = partial(NORMS[name], channels, **{**drawn, **fixed})
    layer = randomized(make, dtype, seed=draw(st.integers(0, 99))).train(draw(st.booleans()))
    if hasattr(layer, "radius"):  # of equal logits, too
        layer.radius.fill_(draw(st.floats(0, 1)))
        layer.mean_weight.detach().mul_(draw(st.sampled_from([0, 0.1, 1])))
    return layer


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": cases.channels_last,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "a part": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
}
channel_counts = st.sampled_from([1, 4, 6, 12])
#: Up to three spatial dimensions, often of size 1; from several vectors to several blocks of a row.
large = st.tuples(st.integers(128, 700), st.integers(1, 2))
sizes = st.lists(st.integers(1, 5), max_size=3) | large


@st.composite
def maps(draw, channels):
    """A random map in a random layout."""
    shape = (draw(st.integers(1, 5)), channels, *draw(sizes))
    lay_out = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    return lay_out(inputs(*shape, seed=draw(st.integers(0, 99))))


# ---- kernels equal the reference


@for_any(NORMS)
def test_kernels_equal_the_reference_in_any_layout(name, data):
    channels = data.draw(channel_counts)
    layer, x = data.draw(layers(name, channels)), data.draw(maps(channels))
    cases.assert_kernels_equal_the_reference(layer, x, inputs(*x.shape, seed=3))


@cases.layouts
@pytest.mark.parametrize("length", [513, 1025, 8193, 16391])
@pytest.mark.parametrize("name", cases.PATHS)
def test_no_position_of_a_large_map_is_left_out(name, length, layout):
    """Kernels take large maps in blocks: of 512 positions, of several channels, of 8192 values."""
    layer, dy = randomized(CASES[name][0]).eval(), inputs(2, CHANNELS, length, seed=5)
    x = layout(inputs(2, CHANNELS, length))
    cases.assert_kernels_equal_the_reference(layer, x, dy)


# ---- extreme values


def extreme(kind, x, dtype, largest):
    """x in another dtype, brought to the limits of what that can hold, or to ``largest``."""
    limits = torch.finfo(dtype)
    largest, unit = min(limits.max, largest), x / x.abs().max()
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
def extremes(draw, name):
    """A layer and an extreme map, where outputs and gradients are promised to be finite.

    With the defaults, that is until squares overflow. With any options but unbounded activations,
    which multiply by the variance, it is up to the fourth root of the largest number, 4e9 in
    float32, and in all of float16, unless that cannot hold what running statistics make of it.
    """
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    channels, computed = draw(channel_counts), torch.promote_types(dtype, torch.float32)
    largest = torch.finfo(computed).max ** 0.25
    if draw(st.booleans()):
        channels, largest = 32, largest**2 / 2**12
        layer = NORMS[name](channels, dtype=computed)
    else:
        bounded = st.tuples(*[st.sampled_from(["tanh", "sigmoid"])] * 2)
        unbounded = "activations" in inspect.signature(NORMS[name]).parameters
        fixed = {"activations": draw(bounded)} if unbounded else {}
        layer = draw(layers(name, channels, computed, **fixed))
    if dtype == torch.float16 and name not in cases.INDEPENDENT:
        layer.train()
    return layer, extreme(draw(st.sampled_from(KINDS)), draw(maps(channels)), dtype, largest)


@for_any(NORMS, few=25)
def test_extreme_values_stay_finite(name, data):
    layer, x = data.draw(extremes(name))
    dy, backend = inputs(*x.shape, seed=3).to(x), data.draw(st.sampled_from(BACKENDS))
    twin = copy.deepcopy(layer).double()
    exact = cases.named_results(twin, x.double(), dy.double(), "reference")
    with compiled_for(data.draw(st.sampled_from(INSTRUCTION_SETS))):
        found = cases.named_results(layer, x, dy, backend)
    assert found["y"].dtype == x.dtype
    assert found["y"].shape == x.shape
    found.pop("num_batches_tracked", None)
    for key, values in found.items():
        # SSN's mean of one normalizer over another's deviation may be more than float16 holds.
        fits = exact[key].abs() <= torch.finfo(values.dtype).max
        assert values[fits].isfinite().all(), key
