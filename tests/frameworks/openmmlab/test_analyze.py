"""What layers do, in OpenMMLab: tools/analyze.py on its configs, and ratios while it trains."""

import json

import pytest
import torch

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
pytest.importorskip("matplotlib", reason="pictures need matplotlib")
pytest.importorskip("sklearn", reason="maps of images need scikit-learn")

import numpy as np
from PIL import Image

from ilm_plugins.checkpoints import write
from ilm_plugins.cli import analyze, convert, train_net
from ilm_plugins.pix2pix.networks import to_signed
from runs import mmengine_command, read_csv, write_class_folders

RESNET20 = "configs/mmpretrain/en/resnet20_cifar10_en.py"
EN = "model.backbone.norm_cfg={'type': 'EN', 'reduction': 8, '_delete_': True}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of two images."""
    return write_class_folders(tmp_path_factory.mktemp("images"), each=2, height=32)


def checkpoint(path, config, *opts):
    """One of a config's model, whose layers make other things of each image; and the model."""
    torch.manual_seed(0)
    model = convert.build_model(str(config), opts)
    for name, parameter in model.named_parameters():
        if name.endswith(("ratio.weight", "decode_var.weight")):
            torch.nn.init.normal_(parameter)
        elif name.endswith("encode.weight"):
            parameter.data.abs_()  # no dead unit, as variances are positive
    write({"state_dict": model.state_dict(), "meta": {}}, path)
    return model.eval()


def run(*words):
    return analyze.main([str(word) for word in words])


def analyzed(measure, images, config, model, out, *options):
    """The table of each image that the tool writes of a model's checkpoint."""
    words = ("--config-file", config, "--checkpoint", model, "--output", out, *options)
    assert run(measure, images, *words) == 0
    name = {"ratios": "ratios", "omega": "rescaling"}[measure]
    return read_csv(out / f"{name}_by_image.csv")


def check_ratios(found, name, layer, convolution, images, mean, std):
    """Compare a first layer's ratios with those of images (3, H, W), computed here."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    expected = layer.ratios(convolution((images - mean) / std))
    for row, ratios in zip(found, expected.tolist(), strict=True):
        names = [f"{name}/{n}" for n in ("IN", "LN", "BN")]
        assert [float(row[n]) for n in names] == pytest.approx(ratios, abs=1e-4)


def read(folder):
    """(N, 3, H, W) RGB, in the order of a set of images."""
    files = sorted(folder.rglob("*.*g"))
    pixels = np.stack([np.array(Image.open(f).convert("RGB")) for f in files])
    return torch.tensor(pixels).permute(0, 3, 1, 2).float()


def test_a_classifier_of_images_in_rgb(unrendered, root, folder, tmp_path, capsys):
    model = checkpoint(tmp_path / "a.pth", root / RESNET20)
    out = tmp_path / "out"
    found = analyzed("ratios", folder, root / RESNET20, tmp_path / "a.pth", out)
    printed = capsys.readouterr().out
    assert "each: the config's test pipeline, PackInputs" in printed
    assert [row["class"] for row in found] == ["cat", "cat", "dog", "dog"]
    stem, scaling = model.backbone.stem, ((125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
    check_ratios(found, "backbone.stem.gn", stem.gn, stem.conv, read(folder), *scaling)


def test_a_segmenter_of_images_in_bgr(unrendered, config, datasets, tmp_path, capsys):
    mean, std = (1.0, 2.0, 3.0), (10.0, 20.0, 30.0)
    opts = [f"model.data_preprocessor.{k}={v}" for k, v in (("mean", mean), ("std", std))] + [EN]
    backbone = checkpoint(tmp_path / "a.pth", config, *opts).backbone
    images, out = datasets / "shapes" / "images" / "validation", tmp_path / "out"
    options = ("--match", "backbone.*", "--opts", *opts)
    found = analyzed("ratios", images, config, tmp_path / "a.pth", out, *options)
    assert "each: the config's test pipeline, " in capsys.readouterr().out
    x = read(images)[:, [2, 1, 0]]
    check_ratios(found, "backbone.gn1", backbone.gn1, backbone.conv1, x, mean, std)


def test_a_detector_has_its_proposals_mean(unrendered, root, datasets, tmp_path, capsys):
    config = root / "configs/mmdet/shapes/mask-rcnn_r18_fpn_gn_shapes_ilmgn.py"
    checkpoint(tmp_path / "a.pth", config)
    images, out = datasets / "shapes" / "images" / "validation", tmp_path / "out"
    found = analyzed("omega", images, config, tmp_path / "a.pth", out, "--limit", 2)
    assert "Resize > PackDetInputs" in capsys.readouterr().out
    assert len(found) == 2 and "roi_head.bbox_head.shared_convs.0.gn/omega" in found[0]


def test_a_translation_is_of_the_half_that_it_starts_from(unrendered, root, tmp_path, capsys):
    config = root / "configs/pix2pix/shapes_ilmin_in.py"
    (tmp_path / "pairs").mkdir()
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (64, 128, 3), np.uint8)
    pixels[:, :64] //= 4
    Image.fromarray(pixels).save(tmp_path / "pairs" / "1.png")
    model = checkpoint(tmp_path / "a.pth", config)
    analyzed("omega", tmp_path / "pairs", config, tmp_path / "a.pth", tmp_path / "out")
    assert "the right half, 64 x 64 pixels, -1 to 1" in capsys.readouterr().out
    seen = {}
    layer = model.generator.down[1][2]
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    right = torch.tensor(pixels[:, 64:]).permute(2, 0, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        model.translate(to_signed([right]))
        omega, _ = layer.rescaling(seen["x"])
    found = read_csv(tmp_path / "out" / "rescaling_by_group.csv")
    of_layer = [r for r in found if (r["layer"], r["parameter"]) == ("generator.down.1.2", "omega")]
    expected = (omega - layer.weight)[0].tolist()
    assert [float(r["mean"]) for r in of_layer] == pytest.approx(expected, abs=1e-4)


def test_a_config_without_a_test_pipeline(root, folder, tmp_path, capsys):
    config = (root / RESNET20, "--checkpoint", tmp_path / "a.pth", "--output", tmp_path / "out")
    assert run("ratios", folder, "--config-file", *config, "--opts", "test_dataloader=None") == 2
    assert "has no test_dataloader.dataset.pipeline, by which" in capsys.readouterr().err


def scalars(out):
    """step -> names and values of logged ratios."""
    lines = [line for f in out.glob("*/vis_data/scalars.json") for line in f.open()]
    found = {}
    for entry in map(json.loads, lines):
        ratios = {k: v for k, v in entry.items() if k.startswith("ratios/")}
        if ratios:
            found[entry["step"]] = ratios
    return found


@pytest.mark.parametrize("by", ["option", "config"])
def test_ratios_are_logged_while_training(config, tmp_path, by):
    pytest.importorskip("torch.utils.tensorboard", reason="needs tensorboard")
    opts, options = [EN], ["--ratios-interval", "2"]
    if by == "config":
        backends, options = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}], []
        opts.append(f"visualizer={{'type': 'Visualizer', 'vis_backends': {backends}}}")
        opts.append("custom_hooks=[{'type': 'RatiosHook', 'interval': 3}]")
    out = tmp_path / "out"
    assert train_net.main(mmengine_command(config, *options, out=out, opts=opts)) == 0
    found = scalars(out)
    assert list(found) == ([2, 4] if by == "option" else [3])
    last = list(found.values())[-1]
    means = [last[f"ratios/backbone.layer1.0.gn1/{n}"] for n in ("IN", "LN", "BN")]
    assert sum(means) == pytest.approx(1) and means != [pytest.approx(1 / 3, abs=1e-9)] * 3
    (file,) = out.glob("*/vis_data/events.out.tfevents*")
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(module).EventAccumulator(str(file)).Reload()
    events = accumulator.Scalars("ratios/backbone.layer1.0.gn1/BN")
    assert [e.step for e in events] == list(found)
    (log,) = out.glob("*/*.log")
    assert "ratios/" not in log.read_text().split("Checkpoints will be saved")[1]


def test_a_model_without_ratios_is_told_when_training_starts(config, tmp_path, capsys):
    argv = mmengine_command(config, "--ratios-interval", "2", out=tmp_path / "out")
    assert train_net.main(argv) == 2
    assert "error: the model has no EN, SN or SSN layer" in capsys.readouterr().err
