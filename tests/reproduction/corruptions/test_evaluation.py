"""BatchNorm with the statistics of batches of the test images, and the change of a pipeline."""

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")

from reproduction.corruptions import evaluation


@pytest.fixture
def model():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Sequential(norm), nn.ReLU()).eval()


@pytest.mark.parametrize("size", [1, 4, 12])
def test_statistics_are_of_each_batch_as_batch_norm_has_them_in_training(model, size):
    x = torch.randn(12, 3, 5, 4)
    found = evaluation.with_batch_statistics(model, size)(x)
    norm = model[0][0]
    batches = [
        nn.functional.batch_norm(one, None, None, norm.weight, norm.bias, training=True)
        for one in x.split(size)
    ]
    torch.testing.assert_close(found, torch.cat(batches).relu())


def test_the_model_itself_keeps_its_running_statistics(model):
    x = torch.randn(4, 3, 5, 4)
    before = model(x)
    evaluation.with_batch_statistics(model, 4)(x)
    assert model(x).equal(before)


def test_an_image_is_changed_after_it_is_loaded_and_before_it_is_standardized():
    names = ("LoadImageFromFile", "LoadAnnotations", "StandardizeImage", "PackSegInputs")
    pipeline = [{"type": name} for name in names]
    found = evaluation._changed(pipeline, {"name": "jpeg", "quality": 15})
    assert found[1] == {"type": "TorchvisionTransform", "name": "jpeg", "quality": 15}
    assert [step for step in found if step != found[1]] == pipeline


def test_all_steps_of_a_test_hold_whole_batches():
    assert not any(evaluation.STEP % size for size in evaluation.BATCHES)
