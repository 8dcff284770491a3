"""Pooling of moments by the law of total variance."""

import pytest
import torch

from ilm_plugins.ops import coarsen, duplicate, moments, over_batch


@pytest.fixture
def x():
    return torch.randn(3, 12, 5, 4, dtype=torch.float64) * torch.arange(1, 13).view(12, 1, 1) + 2


@pytest.mark.parametrize("groups", [1, 2, 3, 6, 12])
def test_moments_are_those_of_each_group(x, groups):
    mean, var = moments(x, groups)
    expected = x.reshape(3, groups, -1)
    torch.testing.assert_close(mean, expected.mean(2))
    torch.testing.assert_close(var, expected.var(2, correction=0))


@pytest.mark.parametrize("fine, coarse", [(12, 12), (12, 4), (6, 2), (12, 1)])
def test_coarse_moments_follow_from_fine_ones(x, fine, coarse):
    for actual, expected in zip(
        coarsen(*moments(x, fine), coarse), moments(x, coarse), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_batch_moments_follow_from_those_of_instances(x):
    mean, var = over_batch(*moments(x, 12))
    torch.testing.assert_close(mean[0], x.mean((0, 2, 3)))
    torch.testing.assert_close(var[0], x.var((0, 2, 3), correction=0))


def test_large_means_do_not_cancel():
    # In float32, E[x^2] - E[x]^2 of these values would be off by more than the variance itself.
    x = 4096 + torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    for groups in (8, 2, 1):
        _, var = coarsen(*moments(x, 8), groups)
        _, exact = moments(x.double(), groups)
        torch.testing.assert_close(var.double(), exact, rtol=1e-4, atol=0)


def test_half_precision_accumulates_in_float32():
    mean, var = moments(torch.full((1, 2, 300, 300), 3, dtype=torch.float16), 1)
    assert mean.dtype == var.dtype == torch.float32
    assert mean.item() == 3 and var.item() == 0


def test_duplicate_repeats_each_group_for_its_channels():
    assert duplicate(torch.tensor([[1, 2]]), 6).tolist() == [[1, 1, 1, 2, 2, 2]]


@pytest.mark.parametrize("count", [15, 30, 60])
def test_equal_means_pool_to_themselves(count):
    """To the last bit: 600,000 * (1 / 60) is not 10,000 in float32."""
    mean, var = torch.full((1, count), 1e4), torch.zeros(1, count)
    for pooled in (coarsen(mean, var, 1), over_batch(mean.T, var.T)):
        assert [moment.item() for moment in pooled] == [1e4, 0]
