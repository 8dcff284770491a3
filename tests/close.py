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


def assert_close(actual, expected, roundings=ROUNDINGS, scale=None):
    """Assert that tensors, or collections of them, differ by roundings of their largest value.

    These are of the less precise dtype, and a quarter under --strict-numbers; ``scale`` is the
    largest value that was rounded on the way, where results are smaller.
    """
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = [actual[key] for key in expected], list(expected.values())
    if not isinstance(expected, torch.Tensor):
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, roundings, scale)
        return
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if expected.numel() == 0:
        return
    error = (actual.detach().double().cpu() - expected.detach().double().cpu()).abs().max().item()
    largest = max(expected.detach().abs().max().item(), scale or 2**-20)
    allowed = roundings / (4 if os.environ.get("ILM_PLUGINS_TEST_STRICT") else 1)
    found = error / largest / max(map(unit, (actual.dtype, expected.dtype)))
    for dtype in {actual.dtype, expected.dtype} & {torch.float16, torch.bfloat16}:
        allowed += torch.finfo(dtype).eps / unit(dtype)  # rounded once more where they are stored
    assert found <= allowed, f"{found:.3g} roundings, allowed are {allowed:.3g}"


def assert_equal(actual, expected):
    """Assert that tensors, or collections of them, are equal bit for bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
