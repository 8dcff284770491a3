"""The messages by which tests tell what differs."""

import re

import pytest
import torch

from helpers.close import assert_close, assert_equal

comparisons = pytest.mark.parametrize("compare", [assert_close, assert_equal])


def check_message(compare, actual, expected, message):
    with pytest.raises(AssertionError, match="^" + re.escape(message)):
        compare(actual, expected)


@comparisons
@pytest.mark.parametrize(
    "nest, name",
    [
        (lambda x: x, "the tensor"),
        (lambda x: {"a": torch.zeros(2), "b": x}, "['b']"),
        (lambda x: [torch.zeros(2), x], "[1]"),
        (lambda x: [{"b": (x,)}], "[0]['b'][0]"),
    ],
    ids=["tensor", "dict", "list", "nested"],
)
def test_a_failure_names_the_tensor_its_position_and_both_values(compare, nest, name):
    actual, expected = torch.zeros(3, 4), torch.zeros(3, 4)
    actual[2, 1], expected[2, 1] = 1.5, -0.25
    check_message(
        compare, nest(actual), nest(expected), f"{name} at (2, 1): got 1.5, expected -0.25"
    )


@comparisons
def test_a_failure_tells_shapes_that_differ(compare):
    with pytest.raises(AssertionError, match=r"^\[0\]: got .*\(3,\), expected .*\(1, 3\)"):
        compare([torch.ones(3)], [torch.ones(1, 3)])


def test_equal_takes_nan_and_infinity_as_values():
    x = torch.tensor([torch.nan, torch.inf, 1.0])
    assert_equal(x, x.clone())
    check_message(
        assert_equal, x, torch.tensor([torch.nan, torch.inf, 2.0]), "the tensor at (2,): got 1"
    )


def test_close_allows_the_rounding_of_float16_to_its_least_subnormal_number():
    """It is 6e-8. A sum of float32 that small may be stored as 0, and no larger one may."""
    zero = torch.zeros(1, dtype=torch.float16)
    assert_close(zero, torch.full((1,), 2.9e-8, dtype=torch.float64), 1, 1e-6)
    with pytest.raises(AssertionError):
        assert_close(zero, torch.full((1,), 6e-8, dtype=torch.float64), 1, 1e-6)
