"""What layers do, in detectron2: tools/analyze.py on its configs, and ratios while it trains."""

import json

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
pytest.importorskip("matplotlib", reason="pictures need matplotlib")
pytest.importorskip("sklearn", reason="maps of images need scikit-learn")

from detectron2.data import DatasetCatalog

from faults import error_line
from ilm_plugins.checkpoints import read, write
from ilm_plugins.cli import analyze, convert, train_net
from runs import LAZY, NO_TEST, SHAPES, SMALL, read_csv
from runs import detectron2_command as command

EN = ("MODEL.FPN.NORM", "EN(reduction=8)")
WITH_SN = """
model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = "BN"
model.backbone.norm = "SN"
for _mapper in (dataloader.train.mapper, dataloader.test.mapper):
    _mapper.augmentations[0].short_edge_length = 48
del dataloader.evaluator
"""


def images(datasets):
    return str(datasets / "shapes" / "images" / "validation")


def ratios(folder):
    """Logged entries with ratios: iteration -> scalar -> value."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    found = {
        line["iteration"]: {k: v for k, v in line.items() if k.startswith("ratios/")}
        for line in lines
    }
    return {iteration: scalars for iteration, scalars in found.items() if scalars}


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """The folder of four iterations of a Mask R-CNN with EN in its FPN."""
    out = tmp_path_factory.mktemp("trained")
    opts = ["SOLVER.MAX_ITER", "4", *NO_TEST, *EN]
    assert train_net.main(command("--ratios-interval", "2", out=out, opts=opts)) == 0
    return out


def test_ratios_are_logged_while_training(trained):
    (scalars,) = ratios(trained).values()
    means = [scalars[f"ratios/backbone.fpn_output3.norm/{n}"] for n in ("IN", "LN", "BN")]
    assert sum(means) == pytest.approx(1) and means != [pytest.approx(1 / 3)] * 3
    assert len(scalars) == 8 * 3
    (file,) = trained.glob("events.out.tfevents*")
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(module).EventAccumulator(str(file)).Reload()
    (event,) = accumulator.Scalars("ratios/backbone.fpn_output3.norm/BN")
    assert event.value == pytest.approx(means[2]) and event.step == 3


def test_ratios_of_a_yaml_config(unrendered, datasets, trained, tmp_path, capsys):
    contents = read(trained / "model_final.pth")
    for name, tensor in contents["model"].items():
        if name.endswith("ratio.weight"):
            # Four iterations leave it too small for six digits.
            torch.nn.init.normal_(tensor)
    write(contents, tmp_path / "a.pth")
    argv = ["ratios", images(datasets), "--config-file", str(SHAPES)]
    argv += ["--checkpoint", str(tmp_path / "a.pth"), "--output", str(tmp_path / "out")]
    assert analyze.main([*argv, "--opts", *SMALL, *EN]) == 0
    printed = capsys.readouterr().out
    assert "ResizeShortestEdge(short_edge_length=[64, 64], max_size=64)" in printed
    assert "over 8 layers" in printed
    found = read_csv(tmp_path / "out" / "ratios_by_image.csv")
    assert len(found) == 4 and found[0]["class"] == ""
    assert len({row["backbone.fpn_output3.norm/BN"] for row in found}) > 1


def test_proposals_of_an_image_have_their_mean(unrendered, datasets, trained, tmp_path, capsys):
    argv = ["omega", images(datasets), "--config-file", str(SHAPES)]
    argv += ["--checkpoint", str(trained / "model_final.pth")]
    opts = ["--opts", *SMALL, *EN]
    assert analyze.main([*argv, "--output", str(tmp_path / "out"), *opts]) == 0
    found = read_csv(tmp_path / "out" / "rescaling_by_image.csv")
    assert len(found) == 4 and "roi_heads.box_head.conv1.norm/omega" in found[0]
    several = ["--output", str(tmp_path / "other"), "--batch-size", "2", *opts]
    assert analyze.main([*argv, *several]) == 2
    assert "instances for 2 images, which cannot be matched" in capsys.readouterr().err


def test_a_lazy_config(unrendered, datasets, tmp_path, capsys):
    config = tmp_path / "lazy.py"
    config.write_text(LAZY.replace('f"mine_{id(train)}"', "'mine_once'") + WITH_SN)
    argv = ["--config-file", str(config), "--num-gpus", "0", "--ratios-interval", "2"]
    assert train_net.main([*argv, f"train.output_dir={tmp_path / 'out'}"]) == 0
    ((iteration, scalars),) = ratios(tmp_path / "out").items()
    assert iteration == 1 and "ratios/backbone.fpn_output3.norm.var/LN" in scalars
    checkpoint = tmp_path / "out" / "model_final.pth"
    DatasetCatalog.remove("mine_once")  # as in a new process
    argv = ["ratios", images(datasets), "--config-file", str(config), "--checkpoint"]
    assert analyze.main([*argv, str(checkpoint), "--output", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "ResizeShortestEdge(short_edge_length=(48, 48), max_size=64" in printed
    # SN's ratios are in the checkpoint, and were to be seen in the step that made it.
    logits = read(checkpoint)["model"]["backbone.fpn_output3.norm.var_weight"]
    (row,) = (
        row
        for row in read_csv(tmp_path / "a" / "ratios_by_layer.csv")
        if (row["layer"], row["normalizer"]) == ("backbone.fpn_output3.norm.var", "LN")
    )
    assert float(row["mean"]) == pytest.approx(logits.softmax(0)[1].item(), abs=1e-5)


def test_a_model_without_ratios_is_told_before_training(datasets, tmp_path, capfd):
    line = error_line(command("--ratios-interval", "2", out=tmp_path), capfd, status=2)
    assert "error: the model has no EN, SN or SSN layer, its norms are" in line
    assert not list(tmp_path.glob("*.pth"))


def test_a_checkpoint_of_another_config(datasets, tmp_path, capsys):
    model = convert.build_model(str(SHAPES), SMALL)
    write({"model": model.state_dict()}, tmp_path / "a.pth")
    argv = ["ratios", images(datasets), "--config-file", str(SHAPES)]
    argv += ["--checkpoint", str(tmp_path / "a.pth"), "--output", str(tmp_path / "out")]
    assert analyze.main([*argv, "--opts", *SMALL, *EN]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "does not fit: " in line and "such as backbone.fpn_lateral2.norm." in line
