"""Every layer in two to four CPU processes over gloo, with replicas and with shards."""

import pytest

from fresh import spawn
from workers import SHARDED, free_port, gradients, sharded_gradients, without


@pytest.mark.parametrize(
    "shares",
    [
        [(5, 1), (4, 0)],
        pytest.param([(4, 0, 2)], marks=pytest.mark.wide),
        pytest.param([(1, 0, 5, 0)], marks=pytest.mark.wide),
    ],
    ids=lambda shares: len(shares[0]),
)
def test_gradients_are_those_of_one_process(shares):
    """With unequal and empty shares, and accumulated over steps, in which shares may be empty."""
    size = len(shares[0])
    spawn(gradients, (size, free_port(), shares), nprocs=size)


@pytest.mark.wide
@pytest.mark.parametrize("kind", SHARDED)
def test_gradients_of_shards_are_those_of_one_process(kind):
    """With unequal and empty shares of the batch."""
    if lacking := without(kind):
        pytest.skip(lacking)
    shares = (3, 3), (5, 1), (4, 0)
    spawn(sharded_gradients, (2, free_port(), kind, shares), nprocs=2)
