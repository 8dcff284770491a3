"""A trained BN segmenter with the statistics of its test images, as tools/ makes it."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from helpers import trainings
from ilm_plugins.frameworks import open_config


@pytest.mark.wide
def test_batch_norm_gets_the_test_images_statistics_and_all_else_stays(tmp_path, root, datasets):
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    from mmengine.runner import Runner

    text = trainings.MMENGINE_CONFIG.replace("DATASETS", str(datasets)).replace(
        "batch_size=1", "batch_size=4"
    )
    config, run = tmp_path / "small.py", tmp_path / "run"
    config.write_text(text.replace('type="ILMGN", num_groups=4', 'type="BN"'))
    opened = open_config(str(config), [])
    model = opened.build_model()
    run.mkdir()
    (run / "record.json").write_text(json.dumps({"overrides": []}))
    (run / "last_checkpoint").write_text("iter_4.pth")
    torch.save({"state_dict": model.state_dict()}, run / "iter_4.pth")
    tool = root / "tools" / "reestimate_statistics.py"
    done = subprocess.run(
        [sys.executable, tool, run, config], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]

    found = torch.load(run / "small-reestimated" / "reestimated.pth")["state_dict"]
    statistics = {name for name in found if name.endswith(("_mean", "_var", "_tracked"))}
    for name, tensor in model.state_dict().items():
        assert name in statistics or tensor.equal(found[name]), name
    convolution, norm = model.backbone.conv1, model.backbone.bn1
    assert isinstance(norm, nn.BatchNorm2d)
    (batch,) = Runner.build_dataloader(opened.config.test_dataloader)  # all four images
    maps = convolution(model.data_preprocessor(batch)["inputs"]).double()
    for name, one in (("mean", maps.mean((0, 2, 3))), ("var", maps.var((0, 2, 3)))):
        now = found[f"backbone.bn1.running_{name}"].double()
        torch.testing.assert_close(now, one, rtol=1e-4, atol=1e-5)
    assert json.loads((run / "small-reestimated" / "record.json").read_text())["metrics"]
