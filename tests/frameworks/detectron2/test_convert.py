"""GN checkpoints of detectron2 for a box head with ILM+GN: the same outputs, and fine-tuning."""

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.detection_utils import read_image
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock

from ilm_plugins import ExemplarNorm, ILMGroupNorm, surgery
from ilm_plugins.checkpoints import read, write
from ilm_plugins.cli import convert, train_net
from ilm_plugins.cli.convert import build_model
from ilm_plugins.frameworks.detectron2.checkpoints import Checkpointer
from runs import NO_TEST, detectron2_command
from swaps import change, randomized

FOLDER = "configs/detectron2/shapes"
GN, ILMGN = (f"{FOLDER}/mask_rcnn_R_18_FPN_{norm}.yaml" for norm in ("gn", "ilmgn"))
NORMS = [f"roi_heads.box_head.conv{i}.norm" for i in (1, 2, 3, 4)]


def image(datasets):
    (path, *_) = sorted((datasets / "shapes" / "images" / "validation").iterdir())
    return torch.as_tensor(read_image(path, format="BGR").transpose(2, 0, 1).astype("float32"))


@torch.no_grad()
def outputs(model, picture):
    """Boxes, scores and masks' logits of an image, and the box head's scores of all proposals."""
    found = {}
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, output: found.update(logits=output[0], deltas=output[1])
    )
    (result,) = model.eval().inference([{"image": picture}], do_postprocess=False)
    hook.remove()
    assert len(result) > 0
    return {
        **found,
        "boxes": result.pred_boxes.tensor,
        "scores": result.scores,
        "masks": result.pred_masks,
    }


@pytest.fixture(scope="module")
def plain(root):
    torch.manual_seed(0)
    return randomized(build_model(str(root / GN)))


@pytest.fixture
def checkpoint(plain, tmp_path):
    write({"model": plain.state_dict(), "optimizer": {}, "iteration": 3}, tmp_path / "gn.pth")
    return tmp_path / "gn.pth"


def run(*words):
    return convert.main([str(word) for word in words])


def test_a_gn_checkpoint_evaluates_the_same_and_fine_tunes(
    root, datasets, plain, checkpoint, tmp_path, capsys
):
    converted = tmp_path / "ilmgn.pth"
    assert run(checkpoint, converted, "--config-file", root / ILMGN) == 0
    printed = capsys.readouterr().out
    names = "".join(f"    {name}\n" for name in NORMS)
    assert f"converted, GN or IN -> ILMGroupNorm (4):\n{names}" in printed
    assert "left" not in printed and "missing" not in printed and "optimizer" in printed

    model = build_model(str(root / ILMGN))
    before = outputs(plain, image(datasets))
    assert change(before["logits"], outputs(model, image(datasets))["logits"]) > 0.01
    problems = DetectionCheckpointer(model)._load_model({"model": read(converted)["model"]})
    assert not problems.missing_keys and not problems.unexpected_keys
    assert all(type(model.get_submodule(name)) is ILMGroupNorm for name in NORMS)
    after = outputs(model, image(datasets))
    assert {name: change(value, after[name]) for name, value in before.items()} == pytest.approx(
        dict.fromkeys(before, 0), abs=1e-6
    )
    opts = ["MODEL.WEIGHTS", str(converted), "SOLVER.MAX_ITER", "2", *NO_TEST]
    assert train_net.main(detectron2_command(out=tmp_path / "out", opts=opts)) == 0
    trained, start = read(tmp_path / "out" / "model_final.pth")["model"], read(converted)["model"]
    assert any(trained[f"{name}.decode_var.weight"].any() for name in NORMS)
    assert any(trained[f"{name}.decode_mean.weight"].any() for name in NORMS)
    assert all(trained[f"{name}.omega_offset"] == 0.5 for name in NORMS)
    near = [(trained[f"{n}.weight"] - start[f"{n}.weight"]).abs().max() for n in NORMS]
    assert 0 < max(near) < 0.1, "training went on from the checkpoint's weights"


def test_a_file_of_the_model_zoo(root, plain, tmp_path):
    state = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
    state["pixel_mean"] = state["backbone.fpn_lateral2.weight"][:1]
    zoo = {"model": state, "__author__": "Detectron2 Model Zoo"}
    write(zoo, tmp_path / "model_final.pkl")
    assert run(tmp_path / "model_final.pkl", tmp_path / "o.pkl", "--config-file", root / ILMGN) == 0
    assert read(tmp_path / "o.pkl")["__author__"] == "Detectron2 Model Zoo"
    model = build_model(str(root / ILMGN))
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(tmp_path / "o.pkl"))
    for name in NORMS:
        layer, theirs = model.get_submodule(name), plain.get_submodule(name)
        assert layer.omega_offset == 0.5 and not layer.decode_var.weight.any()
        assert torch.equal(layer.weight, theirs.weight)


def test_frozen_batchnorm_becomes_a_frozen_en():
    torch.manual_seed(0)
    block = randomized(BasicBlock(16, 32, stride=2, norm="FrozenBN"))
    x = torch.randn(2, 16, 9, 9)
    expected = block(x)
    assert type(block.conv1.norm) is FrozenBatchNorm2d
    block, report = surgery.convert(block, "EN")
    assert len(report.converted) == 3 and type(block.shortcut.norm) is ExemplarNorm
    assert block.training and block.conv1.norm.frozen
    assert "frozen, as FrozenBatchNorm2d is; to train it, call freeze(layer, False)" in report.notes
    assert change(expected, block(x)) <= 1e-6


def test_a_backbone_within_the_backbone_is_named(root, plain, tmp_path, capsys):
    backbone = plain.backbone.bottom_up
    write(backbone.state_dict(), tmp_path / "in.pth")
    config = ["--config-file", root / GN, "MODEL.RESNETS.NORM", "ILMGN"]
    words = [tmp_path / "in.pth", tmp_path / "out.pth", *config]
    assert run(*words) == 2
    assert "of its backbone.bottom_up; give --part backbone.bottom_up" in capsys.readouterr().err
    assert run(*words, "--part", "backbone") == 2
    assert "of its backbone.bottom_up; give --part backbone.bottom_up" in capsys.readouterr().err
    assert run(*words, "--part", "backbone.bottom_up") == 0


def test_mistakes_in_configs(root, checkpoint, tmp_path, capsys):
    def refused(*words):
        assert run(checkpoint, tmp_path / "out.pth", "--config-file", *words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out.pth").exists()
        return error

    assert "nothing in" in refused(root / GN)
    assert "MODEL.NORMS x does not fit" in refused(root / ILMGN, "MODEL.NORMS", "x")
    assert "num_groups=24 does not divide" in refused(
        root / GN, "MODEL.ROI_BOX_HEAD.NORM", "ILMGN(num_groups=24)"
    )
    error = refused(root / GN, "MODEL.ROI_BOX_HEAD.NORM", "XN")
    assert "unknown norm 'XN' in MODEL.ROI_BOX_HEAD.NORM; known norms: ILMGN" in error
    (tmp_path / "lazy.py").write_text("import detectron2\ntrain = dict(max_iter=3)\n")
    assert "does not define model" in refused(tmp_path / "lazy.py")
    error = refused(root / GN, "MODEL.ROI_BOX_HEAD.NORM", "EN(reduction=16)")
    assert "GN or IN does not become ExemplarNorm" in error


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_one_warning_says_that_weights_must_be_converted(tmp_path, caplog, suffix):
    caplog.set_level("WARNING", logger="fvcore")
    state = {f"conv1.norm.{k}": v for k, v in torch.nn.BatchNorm2d(32).state_dict().items()}
    if suffix == ".pkl":  # as of the model zoo, whose names detectron2 matches
        state = {name: tensor.numpy() for name, tensor in state.items()}
    zoo = {"model": state, "__author__": "zoo", "matching_heuristics": True}
    write(zoo, tmp_path / f"bn{suffix}")
    for norm in ("EN", "ILMIN", "BN"):
        caplog.clear()
        block = BasicBlock(32, 32, norm=norm)
        Checkpointer(block).load(str(tmp_path / f"bn{suffix}"))
        told = [r.message for r in caplog.records if "tools/convert.py" in r.message]
        assert len(told) == (norm != "BN")
        assert all("1 layers, such as conv1.norm, which keep" in text for text in told)


def test_a_lazy_config(root, plain, tmp_path, capsys):
    (tmp_path / "lazy.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "from detectron2.layers import ShapeSpec\n"
        "from detectron2.modeling.roi_heads import FastRCNNConvFCHead\n"
        "model = L(FastRCNNConvFCHead)(\n"
        "    input_shape=L(ShapeSpec)(channels=64, height=7, width=7),\n"
        "    conv_dims=[64] * 4, fc_dims=[128], conv_norm='ILMGN(key_group_size=8)',\n"
        ")\n"
    )
    write({"model": plain.roi_heads.box_head.state_dict()}, tmp_path / "head.pth")
    words = [tmp_path / "head.pth", tmp_path / "out.pth", "--config-file", tmp_path / "lazy.py"]
    assert run(*words) == 0
    head = build_model(str(tmp_path / "lazy.py"))
    head.load_state_dict(read(tmp_path / "out.pth")["model"])
    x = torch.randn(3, 64, 7, 7)
    assert change(plain.roi_heads.box_head(x), head(x)) <= 1e-6
