"""Loading a file's weights: another norm's are refused; counters beside a norm are accepted."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from ilm_plugins import ExemplarNorm, ILMGroupNorm, ILMInstanceNorm, SparseSwitchNorm, SwitchNorm
from ilm_plugins.checkpoints import CheckpointError, load_weights

GN = partial(nn.GroupNorm, 4)


def model(make):
    return nn.ModuleDict({"conv": nn.Conv2d(3, 32, 1), "norm": make(32)})


@pytest.fixture
def save(tmp_path):
    """Write the state dict of a model with a norm, and further tensors; return the file."""

    def save(make, **tensors):
        path = tmp_path / "weights.pth"
        torch.save({**model(make).state_dict(), **tensors}, path)
        return path

    return save


@pytest.mark.parametrize(
    "stored, make, tensor",
    [
        (ILMGroupNorm, GN, "decode_mean.weight"),
        (ILMInstanceNorm, nn.InstanceNorm2d, "bias"),
        (nn.BatchNorm2d, GN, "running_mean"),
        (SparseSwitchNorm, SwitchNorm, "mean_fixed"),
    ],
)
def test_weights_of_another_norm_that_has_all_tensors_of_the_models_are_refused(
    save, stored, make, tensor
):
    with pytest.raises(CheckpointError, match=re.escape(f"it has norm.{tensor}, which")):
        load_weights(model(make), save(stored))


def test_a_running_variance_is_loaded_by_batchnorms_name(tmp_path):
    state = model(SwitchNorm).state_dict()
    del state["norm.running_variance"]
    torch.save(state | {"norm.running_var": torch.full((32,), 2.0)}, tmp_path / "weights.pth")
    loaded = model(SwitchNorm)
    load_weights(loaded, tmp_path / "weights.pth")
    assert loaded["norm"].running_variance.unique().tolist() == [2.0]


@pytest.mark.parametrize("make", [ILMGroupNorm, ExemplarNorm, nn.BatchNorm2d, GN])
def test_weights_are_loaded_with_counters_and_without_modules_that_the_model_lacks(save, make):
    further = ("norm.total_ops", "norm.num_batches_tracked", "head.norm.weight", "conv.scale")
    path = save(make, **dict.fromkeys(further, torch.ones(())))
    loaded = model(make)
    load_weights(loaded, path)
    expected = torch.load(path)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in loaded.state_dict().items())
