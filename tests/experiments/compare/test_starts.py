"""How the norms of a comparison differ before training: in words, and on the inputs they share."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ilm_plugins.experiments.compare.starts import are_same, compare_norms, describe

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
