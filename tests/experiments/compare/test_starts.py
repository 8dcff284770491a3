"""How the norms of a comparison differ before training: in words, and on the inputs they share."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ilm_plugins.errors import UserError
from ilm_plugins.experiments.compare.starts import (
    are_same,
    check_fits,
    compare_norms,
    describe,
)

#: As of frameworks: it runs a model on a batch.
OPENED = SimpleNamespace(outputs=lambda model, batch: model(batch))


def compared(model, other):
    torch.manual_seed(0)
    return compare_norms(OPENED, model.double(), other.double(), torch.randn(2, 8, 5, 5).double())


def test_a_norm_without_input_is_counted():
    plain = nn.ModuleDict({"used": nn.BatchNorm2d(8), "unused": nn.BatchNorm2d(8)})
    plain.forward = lambda x: plain["used"](x)
    found = compared(plain, copy.deepcopy(plain))
    assert found == [0.0, None]
    assert describe(found) == "the same; norms without an input in evaluation: 1"


@pytest.mark.parametrize(
    "differences, words",
    [
        (None, "not compared: the baseline's model has another number of norms"),
        ([None], "not compared: no norm has an input in evaluation"),
        ([1e-5, 0.0], "the same"),
        ([0.25, 0.5], "outputs of a norm differ by 50%"),
        ([0.0, float("nan")], "outputs of a norm differ by nan%"),
    ],
)
def test_differences_are_put_into_words(differences, words):
    assert describe(differences) == words


@pytest.mark.parametrize("differences", [None, [None], [0.5], [float("nan")]])
def test_what_differs_or_is_not_known_is_not_the_same(differences):
    assert not are_same(differences)


def test_a_difference_is_of_the_largest_output():
    plain, scaled = nn.Sequential(nn.BatchNorm2d(8)), nn.Sequential(nn.BatchNorm2d(8))
    nn.init.constant_(scaled[0].weight, 1.5)
    assert compared(plain, scaled) == pytest.approx([0.5])


def test_models_with_different_numbers_of_norms_are_not_compared():
    one, two = (nn.Sequential(*[nn.BatchNorm2d(8)] * n) for n in (1, 0))
    assert compared(one, two) is None


def test_a_norm_that_is_called_by_keyword_is_compared():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(input=x)

    assert compared(Named(), Named()) == [0.0]


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
