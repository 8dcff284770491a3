"""What holds of Triton's kernels for every shape, layout and option: generated cases, in few sizes.

As in tests/layers/test_properties.py, in float32, and of what takes few programs to compute.
"""

import copy

import pytest
import torch

from cases import INDEPENDENT, inputs, results
from ilm_plugins import NORMS, use_backend
from interpreter import DEVICE, run_interpreted, runs, skip_without_triton, without_gpu

skip_without_triton()
pytest.importorskip("hypothesis", reason="needs hypothesis")
from hypothesis import strategies as st  # noqa: E402

from generated import (  # noqa: E402
    assert_finite,
    assert_same,
    extremes,
    for_any,
    layers,
    maps,
)

#: Examples of each property, every day and where time allows.
COUNTS = {"few": 5, "many": 40}
#: Of little to interpret: the number of programs is that of instances, or times that of groups.
small = {"batches": st.integers(1, 3), "sizes": st.lists(st.integers(1, 5), max_size=2)}
mild = {"batches": st.integers(1, 3), "sizes": st.lists(st.integers(3, 5), min_size=1, max_size=2)}


@without_gpu
@pytest.mark.parametrize(
    "selection",
    [
        pytest.param("not long", marks=pytest.mark.wide),
        pytest.param("long", marks=pytest.mark.long),
    ],
)
def test_under_the_interpreter(selection):
    run_interpreted(__file__, selection)


@runs
@for_any(NORMS, **COUNTS)
def test_extreme_values_stay_finite(name, data):
    layer, x = data.draw(extremes(name, [torch.float32, torch.bfloat16, torch.float16], **small))
    with use_backend("triton"):
        assert_finite(layer.to(DEVICE), x.to(DEVICE))


def run(layer, x, backend, dtype=torch.float32):
    """y, all gradients and the buffers."""
    layer, x = copy.deepcopy(layer).to(dtype), x.to(dtype)
    dy = inputs(*x.shape, seed=3).to(x)
    return [*results(layer, x, dy, backend), *layer.buffers()]


@runs
@for_any(NORMS, **COUNTS)
def test_agrees_with_the_reference_in_any_order_and_batch(name, data):
    """Of layers and maps that do not magnify the rounding of float32."""
    channels = data.draw(st.sampled_from([1, 4, 6]))
    layer = data.draw(layers(name, channels, torch.float32, eps=0.1)).to(DEVICE)
    for child in layer.children():
        for parameter in child.parameters():
            parameter.detach().mul_(0.1)
    x = data.draw(maps(channels, torch.float32, **mild)).to(DEVICE)
    found = run(layer, x, "triton")
    for actual, expected in zip(found, run(layer, x, "reference", torch.float64), strict=True):
        assert_same(actual, expected, 1e-5)

    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    with use_backend("triton"):
        assert_same(copy.deepcopy(layer)(x[order]), found[0][order], 1e-5)
        if name in INDEPENDENT:
            apart = torch.cat([layer(instance) for instance in x.split(1)])
            assert_same(found[0], apart, 1e-6)
