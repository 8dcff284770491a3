"""Functions of other packages that trace models by torch.fx."""

import copy

import pytest
import torch
from torch import nn

from helpers.close import assert_equal
from ilm_plugins import NORMS


class Classifier(nn.Module):
    """Two stages of convolution and norm."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3), norm)
        self.stage = nn.Sequential(nn.Conv2d(64, 64, 3), copy.deepcopy(norm), nn.ReLU())

    def forward(self, x):
        return self.stage(self.stem(x)).mean((2, 3))


@pytest.mark.parametrize("key", NORMS)
def test_torchvisions_feature_extractor_needs_no_leaf_modules(key):
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, x = Classifier(NORMS[key](64)).eval(), torch.randn(2, 3, 9, 9)
    extract = feature_extraction.create_feature_extractor(model, ["stem.1", "stage"])
    stem = model.stem(x)
    assert_equal(extract(x), {"stem.1": stem, "stage": model.stage(stem)})
