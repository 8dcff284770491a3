"""Whether a file of weights fits a model."""

import pytest
import torch
from torch import nn

from ilm_plugins.comparison.start_weights import check_fits
from ilm_plugins.errors import UserError


def network(count):
    """A backbone of some layers and a head of its own shape."""
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(*[nn.Linear(3, 3) for _ in range(count)]),
            "head": nn.Linear(3, 2 + count),
        }
    )


def test_the_file_of_a_backbone_fits_a_large_model():
    model = network(40)
    model["backbone"] = nn.Sequential(nn.Linear(3, 3))
    model["heads"] = network(40)["backbone"]
    check_fits("file", model["backbone"].state_dict(), model)


def test_a_large_file_fits_a_small_model_that_has_few_of_its_tensors():
    check_fits("file", network(40).state_dict(), network(1))


def test_a_file_of_which_hardly_a_tensor_fits_is_refused():
    other = nn.ModuleDict({"backbone": nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)])})
    other["head"] = nn.Linear(3, 42)
    state = {**other.state_dict(), "backbone.0.num_batches_tracked": torch.zeros(())}
    with pytest.raises(UserError, match="--weights file: only 2 of its 82 tensors fit the model"):
        check_fits("file", state, network(40))
