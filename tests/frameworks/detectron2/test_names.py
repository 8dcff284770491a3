"""The command convert on files whose names detectron2 completes: Caffe2's, and zoo's backbones."""

import pickle
import re

import pytest
import torch

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.checkpoint import DetectionCheckpointer

from helpers.close import assert_close
from helpers.swapped_norms import randomized
from ilm_plugins.__main__ import main
from ilm_plugins.checkpoints import read, write
from ilm_plugins.comparison import start_weights
from ilm_plugins.frameworks import open_config
from ilm_plugins.frameworks.detectron2.checkpoints import Checkpointer

CONFIG = "configs/detectron2/shapes/mask_rcnn_R_18_FPN_gn.yaml"
#: A name of detectron2 -> Caffe2's.
CAFFE2 = {
    r"backbone\.bottom_up\.stem\.conv1\.norm\.weight": "res_conv1_bn_s",
    r"backbone\.bottom_up\.stem\.conv1\.norm\.bias": "res_conv1_bn_b",
    r"backbone\.bottom_up\.stem\.conv1\.weight": "conv1_w",
    r"backbone\.bottom_up\.(res\d)\.(\d)\.shortcut\.": r"\1_\2_branch1_",
    r"backbone\.bottom_up\.(res\d)\.(\d)\.conv1\.": r"\1_\2_branch2a_",
    r"backbone\.bottom_up\.(res\d)\.(\d)\.conv2\.": r"\1_\2_branch2b_",
    r"roi_heads\.box_head\.conv(\d)\.norm\.weight": r"head_conv\1_gn_s",
    r"roi_heads\.box_head\.conv(\d)\.norm\.bias": r"head_conv\1_gn_b",
    r"roi_heads\.box_head\.conv(\d)\.": r"head_conv\1_",
    r"roi_heads\.box_head\.fc1\.": "fc6_",
    r"norm\.weight$": "bn_s",
    r"norm\.bias$": "bn_b",
    r"weight$": "w",
    r"bias$": "b",
}


def build(root, *overrides):
    torch.manual_seed(0)
    return randomized(open_config(str(root / CONFIG), overrides).build_model()).eval().double()


def blobs_of(model, part):
    """The arrays of a part under Caffe2's names; BatchNorms have no statistics there."""
    blobs = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(part) and "running" not in name and "batches" not in name:
            for pattern, blob in CAFFE2.items():
                name = re.sub(pattern, blob, name)
            blobs[name] = tensor.numpy()
    assert not [name for name in blobs if "." in name]
    return blobs


def momenta(blobs):
    return {**blobs, **{f"{name}_momentum": blob for name, blob in blobs.items()}}


def backbone(model):
    return model.backbone.bottom_up


def box_head(model):
    return model.roi_heads.box_head


#: Part of the model, its options before and after, the entry of the weights, and an input.
CASES = {
    "backbone": (backbone, ("MODEL.RESNETS.NORM", "FrozenBN"), ("MODEL.RESNETS.NORM", "EN"), None),
    "detector": (box_head, (), ("MODEL.ROI_BOX_HEAD.NORM", "ILMGN"), "blobs"),
}
INPUTS = {"backbone": (2, 3, 64, 64), "detector": (2, 64, 7, 7)}


@pytest.fixture(params=CASES)
def caffe2(request, root, tmp_path):
    """A file of Caffe2, options of a model with our norms, and a check of such a model."""
    part, before, after, entry = CASES[request.param]
    prefix = {backbone: "backbone.bottom_up", box_head: "roi_heads.box_head"}[part]
    blobs = momenta(blobs_of(build(root, *before), prefix))
    path = tmp_path / "caffe2.pkl"
    path.write_bytes(pickle.dumps({entry: blobs, "cfg": "MODEL: {}"} if entry else blobs, 2))

    def check(path_of_ours):
        plain, ours = build(root, *before), build(root, *after)
        DetectionCheckpointer(plain).load(str(path))
        Checkpointer(ours).load(str(path_of_ours))
        x = torch.randn(INPUTS[request.param], dtype=torch.float64)
        assert_close(part(ours)(x), part(plain)(x), 2**20)

    return path, [root / CONFIG, *after], check


def run(*words):
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("suffix", [".pkl", pytest.param(".pth", marks=pytest.mark.wide)])
def test_a_file_of_caffe2_is_converted_to_a_config(caffe2, tmp_path, capsys, suffix):
    path, config, check = caffe2
    assert run(path, tmp_path / f"out{suffix}", "--config-file", *config) == 0
    printed = capsys.readouterr().out
    assert "skipped" not in printed
    assert "momentum" not in printed
    check(tmp_path / f"out{suffix}")


def test_a_file_of_caffe2_is_converted_to_a_norm(caffe2, tmp_path):
    path, (_, *options), check = caffe2
    words = "--to", options[-1], "--match", "*"
    assert run(path, tmp_path / "out.pkl", *words) == 0
    check(tmp_path / "out.pkl")


def test_a_comparison_starts_from_a_file_of_caffe2(caffe2, tmp_path):
    path, (config, *overrides), check = caffe2
    model = open_config(str(config), overrides).build_model()
    fitted, _ = start_weights.fit(start_weights.read_weights(path), model)
    torch.save({"model": fitted}, tmp_path / "out.pth")
    check(tmp_path / "out.pth")


@pytest.mark.parametrize("options", [[], ["--part", "backbone.bottom_up"]])
def test_a_backbone_of_the_zoo_is_converted_to_a_config(root, tmp_path, options):
    """Its names lack the beginning of the model's, and detectron2 is told to complete them."""
    before, after = ("MODEL.RESNETS.NORM", "BN"), ("MODEL.RESNETS.NORM", "EN")
    plain = build(root, *before)
    state = {name: tensor.numpy() for name, tensor in backbone(plain).state_dict().items()}
    zoo = {"model": state, "__author__": "torchvision", "matching_heuristics": True}
    write(zoo, tmp_path / "in.pkl")
    words = tmp_path / "in.pkl", tmp_path / "out.pkl", "--config-file", root / CONFIG
    assert run(*words, *after, *options) == 0
    assert read(tmp_path / "out.pkl")["matching_heuristics"] is True
    ours = build(root, *after)
    Checkpointer(ours).load(str(tmp_path / "out.pkl"))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_close(backbone(ours)(x), backbone(plain)(x), 2**20)


def test_a_name_that_ends_two_of_the_model_is_told_in_one_line(root, tmp_path, capsys):
    state = {"norm.weight": torch.ones(64).numpy(), "norm.bias": torch.ones(64).numpy()}
    write({"model": state, "__author__": "me", "matching_heuristics": True}, tmp_path / "in.pkl")
    words = tmp_path / "in.pkl", tmp_path / "out.pkl", "--config-file", root / CONFIG
    assert run(*words, "MODEL.RESNETS.NORM", "EN") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "give --part" in told
