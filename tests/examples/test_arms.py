"""The examples of arms: BN with standardized images, and with the test images' statistics."""

import copy
import runpy
from types import SimpleNamespace

import pytest
import torch

from helpers import trainings
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.registrations import Registrations


def test_detectron2s_arm_tests_by_the_test_images_and_trains_on_by_its_own_statistics(
    root, monkeypatch
):
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    example = runpy.run_path(str(root / "examples" / "arms_detectron2.py"))
    kind = example["TestStatisticsRCNN"]
    options = [*trainings.SMALL, "MODEL.FPN.NORM", "BN", "MODEL.DEVICE", "cpu"]
    model = kind(open_config(str(trainings.SHAPES), options).config)
    batches = [[{"image": 255 * torch.rand(3, 64, 64)}] for _ in range(3)]
    monkeypatch.setitem(
        kind.inference.__globals__, "build_detection_test_loader", lambda *_: batches
    )
    layer, before = model.backbone.fpn_output2.norm, copy.deepcopy(model.state_dict())
    inputs = []
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.eval()
    with torch.no_grad():
        model(batches[0])
        model(batches[1])
    assert len(inputs) == 5  # the statistics are measured once
    expected = torch.cat(inputs[:3]).mean((0, 2, 3))
    torch.testing.assert_close(layer.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in model.modules())
    model.train()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.fixture
def segmenter(root):
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    config = "ilm_plugins://mmseg/shapes/fcn_r18-d8_shapes_bn.py"
    Registrations((str(root / "examples" / "arms_mmseg.py"),)).register(
        str(root / "configs" / config.partition("://")[2])
    )
    words = "type=StandardizedImages", "mean=None", "std=None"
    overrides = [f"model.data_preprocessor.{word}" for word in words]
    return open_config(config, overrides).build_model()


def test_mmsegs_arm_gets_the_same_image_at_half_the_contrast(segmenter):
    image = torch.randint(256, (3, 64, 64)).float()
    found = [
        segmenter.data_preprocessor({"inputs": [one], "data_samples": None})["inputs"]
        for one in (image, 0.5 * image + 30)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    assert found[0].std(correction=0) == pytest.approx(1, abs=1e-5)


def test_mmsegs_arm_tests_by_the_test_images_and_trains_on_by_its_own_statistics(segmenter):
    import arms_mmseg

    layer, before = segmenter.decode_head.convs[0].bn, copy.deepcopy(segmenter.state_dict())
    inputs, tested = [], []

    class Loop:
        def run(self):
            tested.append(layer.running_mean.clone())

    class Tested(arms_mmseg.TestStatistics, Loop):
        runner = SimpleNamespace(model=segmenter)

    with layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
        loop = Tested()
        images = [[torch.randint(256, (3, 64, 64)) for _ in range(2)] for _ in range(3)]
        loop.dataloader = [{"inputs": two, "data_samples": None} for two in images]
        loop.run()
    expected = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(tested, [expected], rtol=1e-4, atol=1e-5)
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(tensor, before[name]), name
