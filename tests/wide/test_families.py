"""Families in docs/families.json keep their outputs when converted, and train with the layers."""

import copy
import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import double, randomized
from ilm_plugins import NORMS, surgery
from ilm_plugins.layers.base import AdaptiveNorm

RECORD = Path(__file__).parents[2] / "docs" / "families.json"
FAMILIES = [
    (library, name)
    for library, models in json.loads(RECORD.read_text("utf-8")).items()
    for name, words in models.items()
    if not words.startswith("no: ")
]
KEYS = "EN", "ILMGN", "SN", "AN"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The default weight init:FutureWarning")  # torchvision's
@pytest.mark.parametrize("library, name", FAMILIES)
def test_a_family_keeps_its_outputs_there_and_back_and_trains(library, name):
    pytest.importorskip(library, reason=f"needs {library}'s models")
    torch.manual_seed(0)
    model, run, size = build(library, name)
    model, x, found = randomized(model).double().eval(), double(2, 3, size, size), 0
    with torch.no_grad():  # some models keep results, which deepcopy refuses if they have a graph
        for key in ("EN", "ILMGN"):  # of BatchNorm and of GroupNorm
            expected = outputs(run, model, x)
            changed, report = surgery.convert(copy.deepcopy(model), key, fuse_activations=True)
            assert_close(outputs(run, changed, x), expected, EQUAL)
            was = {name: type(model.get_submodule(name)) for name in report.converted}
            if flat := [name for name, cls in was.items() if cls is nn.BatchNorm1d]:  # LeViT
                changed, _ = surgery.revert(changed, match=flat, dims=1)
            assert_close(outputs(run, surgery.revert(changed)[0], x), expected, EQUAL)
            found += len(report.converted)
    for key in KEYS:  # the others have the same options and input
        if found:
            trained, _ = surgery.convert(copy.deepcopy(model), key, replacing="BN")
        else:  # ConvNeXt has LayerNorm, which conversion leaves
            trained = build(library, name, norm_layer=NORMS[key])[0].double()
        layers = [m for m in trained.modules() if isinstance(m, AdaptiveNorm)]
        reached = watch_gradients(layers)
        sum(leaf.square().mean() for leaf in outputs(run, trained.train(), x)).backward()
        # Not in frozen norms, as DETR's, nor in a head, whose norms do not compute the features.
        trainable = {layer for layer in reached if layer.weight.requires_grad}
        assert {layer for layer in layers if layer.weight.grad is not None} == trainable
        assert all(layer.weight.grad.isfinite().all() for layer in trainable)
        assert layers or found


@pytest.mark.wide
def test_mask2formers_features_stay_when_backbone_and_pixel_decoder_are_converted():
    pytest.importorskip("mmdet", reason="needs OpenMMLab: make install-openmmlab")
    pytest.importorskip("mmcv._ext", reason="needs mmcv's compiled operators")
    torch.manual_seed(0)
    model, _, size = build("mmdet", "mask2former/mask2former_r50_8xb2-lsj-50e_coco")
    model, x = randomized(model).double().eval(), double(2, 3, size, size)

    def decode(model, x):
        return model.panoptic_head.pixel_decoder(model.extract_feat(x))

    with torch.no_grad():
        expected = outputs(decode, model, x)
        model, backbone = surgery.convert(model, "EN")
        model, decoder = surgery.convert(model, "ILMGN")
        assert_close(outputs(decode, model, x), expected, EQUAL)
    assert len(backbone.converted) == 53
    assert len(decoder.converted) == 5


def watch_gradients(layers):
    """A set to which a backward pass adds each layer whose output gets a gradient."""
    reached = set()

    def watch(layer, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: reached.add(layer))

    for layer in layers:
        layer.register_forward_hook(watch)
    return reached


def outputs(run, model, x):
    return [leaf for leaf in tree_leaves(run(model, x)) if isinstance(leaf, torch.Tensor)]


def build(library, name, **options):
    """A model with random weights, what computes its outputs or features, and a size for images."""
    if library == "torchvision":
        models = importlib.import_module("torchvision.models")
        model = models.get_model(name, weights=None, **options)
        return model, lambda model, x: model(x), 299 if "inception" in name else 224
    if library == "timm":
        model = importlib.import_module("timm").create_model(name, **options)
        return model, lambda model, x: model(x), model.default_cfg["input_size"][-1]
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    origin = Path(importlib.util.find_spec(library).origin).parent
    init_default_scope(library)
    importlib.import_module(f"{library}.utils").register_all_modules()
    cfg = Config.fromfile(origin / ".mim" / "configs" / f"{name}.py").model
    size = 224 if library == "mmpretrain" else 128
    return MODELS.build(cfg), lambda model, x: model.extract_feat(x), size
