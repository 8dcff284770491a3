"""Every layer under DistributedDataParallel, in two to four CPU processes over gloo."""

import pytest
from torch.multiprocessing import spawn

from workers import free_port, gradients


@pytest.mark.parametrize(
    "shares", [[(3, 3), (5, 1)], [(4, 0, 2)], [(1, 0, 5, 0)]], ids=lambda shares: len(shares[0])
)
def test_gradients_are_those_of_one_process(shares):
    """With unequal and empty shares, and accumulated over steps, in which shares may be empty."""
    size = len(shares[0])
    spawn(gradients, (size, free_port(), shares), nprocs=size)
