"""Layers with the batch statistics of all processes: several CPU processes over gloo."""

import copy
import io

import pytest
import torch
from torch import distributed, nn

import workers
from cases import BACKENDS
from fresh import spawn
from ilm_plugins import NORMS
from ilm_plugins.layers import OptionError
from interpreter import skip_without_triton
from workers import SYNCHRONIZED, free_port

TWO = (5, 1), (4, 0)


@pytest.mark.parametrize(
    "shares",
    [
        TWO,
        pytest.param([(4, 0, 2), (0, 1, 0)], marks=pytest.mark.wide),
        pytest.param([(1, 0, 5, 0)], marks=pytest.mark.wide),
    ],
    ids=lambda shares: len(shares[0]),
)
def test_a_step_is_that_of_one_process_with_the_whole_batch(shares):
    """Outputs, all gradients and running statistics, to 1e-10 of the largest."""
    backends = [(backend,) for backend in BACKENDS]
    size = len(shares[0])
    spawn(workers.synchronized, (size, free_port(), shares, backends), nprocs=size)


@pytest.mark.wide
def test_with_tritons_kernels(monkeypatch):
    skip_without_triton()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.multiprocessing.spawn(
        workers.synchronized_by_triton, (2, free_port(), [(2, 1), (2, 0)]), nprocs=2
    )


@pytest.mark.parametrize(
    "size, names",
    [
        (2, "gradients_on_one_process recomputed silent_layers untraceable"),
        pytest.param(4, "within_groups", marks=pytest.mark.wide),
    ],
)
def test_processes(size, names):
    """What each function of workers.py shows is said there."""
    functions = [getattr(workers, name) for name in names.split()]
    spawn(workers.in_one_group, (size, free_port(), functions), nprocs=size)


@pytest.mark.parametrize("key", SYNCHRONIZED)
def test_the_option(key):
    layer = NORMS[key](32, sync=True)
    assert layer.sync is True and not layer.synchronizes  # there is no other process
    assert "sync=True" in repr(layer) and "sync" not in repr(NORMS[key](32))
    for wrong in ("True", 1, None):
        with pytest.raises(OptionError, match=r"sync=.* is unknown; set it to True, False or a pr"):
            NORMS[key](32, sync=wrong)


@pytest.mark.parametrize("key", SYNCHRONIZED)
def test_a_deep_copy_has_the_same_process_group(key):
    """As hooks that average weights (EMA) copy a model; torch's SyncBatchNorm fails there."""
    for sync in (True, distributed.ProcessGroup(0, 1)):
        model = nn.Sequential(*[NORMS[key](32, sync=sync)] * 2)
        copied = copy.deepcopy(model)
        assert copied[0] is copied[1] is not model[0]
        assert copied[0].sync is sync and type(copied[0]) is type(model[0])
        torch.testing.assert_close(copied.state_dict(), model.state_dict())
        assert copied[0].weight is not model[0].weight
    with pytest.raises(TypeError, match=r"\Acannot pickle '[\w.]*ProcessGroup' object\Z"):
        torch.save(model, io.BytesIO())


def test_statistics_of_few_values_leave_the_running_ones():
    """As a tensor, the count must not be read by the host, and has the same effect as an int."""
    for count in (0, 1, 2):
        layers = [NORMS["EN"](32) for _ in range(2)]
        mean, var = torch.randn(1, 32), torch.rand(1, 32)
        layers[0].update_running_stats(mean, var, count)
        layers[1].update_running_stats(mean, var, torch.tensor(float(count)))
        for expected, found in zip(*(layer.buffers() for layer in layers), strict=True):
            torch.testing.assert_close(found, expected)
