"""Loading a file's weights: another norm's are refused; counters beside a norm are accepted."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from ilm_plugins import ExemplarNorm, ILMGroupNorm, ILMInstanceNorm, SparseSwitchNorm, SwitchNorm
from ilm_plugins.checkpoints import CheckpointError, load_weights, name_variances
from ilm_plugins.checkpoints.state_dict_for_model import complete_names

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


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    state = model(GN).state_dict()
    del state["norm.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"1 of the model's 4 tensors, such as norm\.bias,"):
        load_weights(model(GN), tmp_path / "weights.pth")


def test_a_variance_is_renamed_where_the_model_has_a_mixture_whose_name_ends_so():
    renamed = name_variances(
        {"norm.running_var": 1, "bn.running_var": 2, "norm.running_mean": 3, "orm.running_var": 4},
        {"stem.norm.running_variance", "bn.running_variance", "bn.running_var"},
    )
    assert renamed == {
        "norm.running_variance": 1,
        "bn.running_var": 2,
        "norm.running_mean": 3,
        "orm.running_var": 4,
    }


def parts(*names):
    return nn.ModuleDict({name: nn.ModuleDict({"norm": nn.Identity()}) for name in names})


def test_names_are_completed_by_the_models_and_the_longest_belongs_to_its_module():
    state = {"norm.weight": 1, "stem.norm.weight": 2, "other.weight": 3, "scale": 4}
    expected = {"head.norm.weight": 1, "stem.norm.weight": 2, "other.weight": 3, "scale": 4}
    assert complete_names(state, parts("stem", "head")) == expected


def test_a_name_that_ends_those_of_two_modules_is_refused():
    with pytest.raises(CheckpointError, match=r"'norm' .* as 'a\.norm' and as 'b\.norm'; give"):
        complete_names({"norm.weight": 1}, parts("a", "b"))
