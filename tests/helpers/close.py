"""The one comparison of tests: a bound in roundings of the largest value."""

import os

import torch

#: Half units in the last place by which a sum of some thousand terms may differ in another order.
ROUNDINGS = 1024
#: 1e-10 in roundings of float64: of whole models, and where equations are written in another way.
EQUAL = 1e-10 * 2**53


def unit(dtype):
    """Half a unit in the last place of 1, in which values of a dtype are computed."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2


def assert_close(actual, expected, roundings=ROUNDINGS, scale=None, name=""):
    """Assert that tensors, or collections of them, differ by roundings of their largest value.

    These are of the less precise dtype, and a quarter under --strict-numbers; ``scale`` is the
    largest value that was rounded on the way, where results are smaller. A failure tells the tensor
    by ``name`` and its keys or indices, the position that differs most, and both values.
    """
    for key, a, e in pairs(actual, expected, name):
        assert a.shape == e.shape, f"{key}: got shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        if e.numel() == 0:
            continue
        largest = max(e.detach().abs().max().item(), scale or 2**-20)
        allowed = roundings / (4 if os.environ.get("ILM_PLUGINS_TEST_STRICT") else 1)
        difference = (a.detach().double().cpu() - e.detach().double().cpu()).abs()
        for dtype in {a.dtype, e.dtype} & {torch.float16, torch.bfloat16}:
            # Rounded once more where stored: to digits, or near 0 to the least subnormal number.
            info = torch.finfo(dtype)
            allowed += info.eps / unit(dtype)
            difference = (difference - info.smallest_normal * info.eps / 2).clamp(min=0)
        found = difference.max().item() / largest / max(map(unit, (a.dtype, e.dtype)))
        assert found <= allowed, (
            f"{describe(key, a, e, difference.argmax())}: {found:.3g} roundings of {largest:.3g}, "
            f"allowed are {allowed:.3g}"
        )


def assert_equal(actual, expected, name=""):
    """Assert that tensors, or collections of them, are equal bit for bit; NaN equals NaN."""
    for key, a, e in pairs(actual, expected, name):
        kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (a, e)]
        assert kinds[0] == kinds[1], f"{key}: got {kinds[0]}, expected {kinds[1]}"
        differ = (a != e) & ~(a.isnan() & e.isnan())
        assert not differ.any(), describe(key, a, e, differ.int().argmax())


def pairs(actual, expected, name=""):
    """Yield the name and both values of each tensor in two collections of the same keys."""
    if isinstance(expected, torch.Tensor):
        yield name or "the tensor", actual, expected
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), f"{name}: got {[*actual]}, expected {[*expected]}"
        for key in expected:
            yield from pairs(actual[key], expected[key], f"{name}[{key!r}]")
    else:
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            yield from pairs(a, e, f"{name}[{i}]")


def describe(name, actual, expected, index):
    """Return a tensor's name, a position by its index in the flattened tensor, and both values."""
    position = tuple(int(i) for i in torch.unravel_index(index, expected.shape))
    a, e = actual[position].item(), expected[position].item()
    return f"{name} at {position}: got {a:.9g}, expected {e:.9g}"
