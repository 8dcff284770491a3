"""The layers in two to four CPU processes over gloo: replicas, shards, statistics of all."""

import copy
import io

import pytest
import torch
from torch import distributed, nn

from equations.cases import BACKENDS, wide
from helpers import workers
from helpers.close import assert_close
from helpers.processes import spawn
from helpers.workers import SHARDED, SYNCHRONIZED, free_port
from ilm_plugins import NORMS
from ilm_plugins.ops.engine.running_statistics import update_by

every_share = pytest.mark.parametrize(
    "shares",
    [[(5, 1), (4, 0)], wide([(4, 0, 2), (0, 1, 0)])],
    ids=lambda shares: len(shares[0]),
)


@every_share
def test_gradients_are_those_of_one_process(shares):
    """With unequal and empty shares, and accumulated over steps, in which shares may be empty."""
    size = len(shares[0])
    spawn(workers.gradients, (size, free_port(), shares), nprocs=size)


@pytest.mark.wide
@pytest.mark.parametrize("kind", SHARDED)
def test_gradients_of_shards_are_those_of_one_process(kind):
    """With unequal and empty shares of the batch."""
    shares = (5, 1), (4, 0)
    spawn(workers.sharded_gradients, (2, free_port(), kind, shares), nprocs=2)


@every_share
def test_a_synchronized_step_is_that_of_one_process_with_the_whole_batch(shares):
    """Outputs, all gradients and running statistics."""
    size = len(shares[0])
    spawn(workers.synchronized, (size, free_port(), shares, BACKENDS), nprocs=size)


@pytest.mark.parametrize(
    "size, names",
    [
        (
            2,
            "gradients_on_one_process maps_of_different_sizes ran_before_the_group recalibrated "
            "recomputed silent_layers untraceable within_groups",
        ),
        wide(4, "within_groups"),
    ],
)
def test_synchronized(size, names):
    """What each function of workers.py shows is said there."""
    functions = [getattr(workers, name) for name in names.split()]
    spawn(workers.in_one_group, (size, free_port(), functions), nprocs=size)


@pytest.mark.parametrize("key", SYNCHRONIZED)
@pytest.mark.parametrize("sync", [True, False])
def test_the_option_is_printed_where_it_is_on(key, sync):
    assert ("sync=True" in repr(NORMS[key](32, sync=sync))) == sync


def test_a_process_outside_a_new_group_may_build_the_layer():
    outside = distributed.GroupMember.NON_GROUP_MEMBER  # as new_group returns it
    assert not NORMS["EN"](32, sync=outside).synchronizes


@pytest.mark.parametrize("key", SYNCHRONIZED)
@pytest.mark.parametrize("make", [lambda: True, lambda: distributed.ProcessGroup(0, 1)])
def test_copies_keep_the_process_group(key, make):
    """As hooks that average weights (EMA) copy a model; torch's SyncBatchNorm fails there."""
    model = nn.Sequential(*[NORMS[key](32, sync=(sync := make()))] * 2)
    copied = copy.deepcopy(model)
    assert copied[0].sync is sync
    assert not copied[0].synchronizes
    assert copied[0].weight is not model[0].weight


@pytest.mark.parametrize("key", SYNCHRONIZED)
def test_a_layer_that_is_shared_is_shared_in_a_copy(key):
    model = nn.Sequential(*[NORMS[key](32, sync=distributed.ProcessGroup(0, 1))] * 2)
    copied = copy.deepcopy(model)
    assert copied[0] is copied[1] is not model[0]


@pytest.mark.parametrize("key", SYNCHRONIZED)
def test_a_process_group_cannot_be_pickled(key):
    model = NORMS[key](32, sync=distributed.ProcessGroup(0, 1))
    with pytest.raises(TypeError, match=r"\Acannot pickle '[\w.]*ProcessGroup' object\Z"):
        torch.save(model, io.BytesIO())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_statistics_of_few_values_leave_the_running_ones(count):
    """As a tensor, the count must not be read by the host, and has the same effect as an int."""
    layers = [NORMS["EN"](32) for _ in range(2)]
    mean, var = torch.randn(1, 32), torch.rand(1, 32)
    for layer, counted in zip(layers, (count, torch.tensor(float(count))), strict=True):
        running = layer.running_mean, layer.running_variance, 0.1, layer.num_batches_tracked
        update_by(running, mean, var, counted)
    assert_close(*(list(layer.buffers()) for layer in layers))
