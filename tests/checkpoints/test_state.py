"""State dicts: where they are in a checkpoint, their names, and whether they fit a model."""

import numpy as np
import pytest
import torch

from ilm_plugins.checkpoints import (
    CheckpointError,
    check_fits,
    find_absent,
    find_state,
    unwrap_state,
)


def test_a_state_dict_is_found_with_arrays_as_tensors_and_versions_of_modules():
    state = torch.nn.BatchNorm2d(3).state_dict()
    for key in ("model", "state_dict", None):
        found, copy = find_state({key: state, "epoch": 3} if key else state, "c.pth")
        assert found == key and copy == state and copy._metadata == state._metadata
    _, copy = find_state({"model": {"a": np.ones(2), "classes": np.array(["cat"])}}, "c.pkl")
    assert torch.is_tensor(copy["a"]) and copy["classes"].tolist() == ["cat"]
    for contents in ([1], 3, {}, {"model": 3}, {"blobs": state}):
        with pytest.raises(CheckpointError, match=r"'c.pth' holds no state dict"):
            find_state(contents, "c.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(prefix):
    model = torch.nn.BatchNorm2d(3)
    wrapped = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    assert [*unwrap_state(wrapped, model)] == [*model.state_dict()]
    inner = torch.nn.ModuleDict({"module": model})
    assert [*unwrap_state(inner.state_dict(), inner)] == [*inner.state_dict()]


def test_a_checkpoint_of_another_model_is_told_from_one_of_a_part():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(4)}
    absent = ["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert find_absent(state, model) == absent
    check_fits("c.pth", model, absent)
    check_fits("c.pth", torch.nn.ReLU(), [])
    with pytest.raises(CheckpointError, match=r"'c.pth' is of another model.* 6 tensors"):
        check_fits("c.pth", model, find_absent({}, model))
