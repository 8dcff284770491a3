"""The record docs/families.json: one model of each family takes a training step with each norm."""

import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, surgery
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.layers.options import automatic

DOCS = Path(__file__).parents[2] / "docs"
KEYS = ("ILMGN", "EN", "SN", "AN")  # the other norms have the same options and take the same input
PLAIN = ("BN", "SyncBN", "GN", "IN")


def rows():
    """(library, model, norm's key, way of setting it) for each model of the record that trains."""
    for library, models in json.loads((DOCS / "families.json").read_text("utf-8")).items():
        for model, words in models.items():
            for key in KEYS if not words.startswith("no: ") else ():
                ways = [way for way in words.split("; ") if key in way] or [words]
                yield library, model, key, ways[0].partition(" (")[0]


@pytest.mark.long
@pytest.mark.parametrize("library, name, key, way", list(rows()))
def test_a_family_trains_as_the_record_says(library, name, key, way):
    pytest.importorskip(library, reason=f"needs {library}'s models")
    build = named if library in ("torchvision", "timm") else configured
    model, loss_of = build(library, name, key, way)
    if way == "convert":
        options = automatic(NORMS[key]) if key == "EN" else {}
        model, _ = surgery.convert(model, key, replacing="BN", **options)
    try:
        loss = loss_of(model.train())
    except ValueError as error:  # PAA fits a mixture model to few scores, here of random weights
        pytest.skip(str(error)) if "mixture model" in str(error) else pytest.fail(str(error))
    loss.backward()
    layers = [m for m in model.modules() if isinstance(m, AdaptiveNorm)]
    gradients = [m.weight.grad for m in layers if m.weight.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def named(library, name, key, way):
    """A model of torchvision or timm, and what computes a loss of it."""

    def norm(channels, apply_act=way == "norm_act", act_layer=nn.ReLU, **_):
        layer = NORMS[key](channels, **automatic(NORMS[key]))
        activates = way == "norm_act" and apply_act and act_layer
        return nn.Sequential(layer, act_layer()) if activates else layer

    where = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    create = where.create_model if library == "timm" else where.get_model
    model = create(name, num_classes=10, **({} if way == "convert" else {"norm_layer": norm}))
    side = 299 if "inception" in name else 224
    side = model.default_cfg["input_size"][-1] if library == "timm" else side

    def loss_of(model):
        output = model(torch.randn(2, 3, side, side))
        logits = output if isinstance(output, torch.Tensor) else output[0]
        return nn.functional.cross_entropy(logits, torch.arange(2))

    return model, loss_of


def configured(library, config, key, way):
    """The model of one of OpenMMLab's configs, and what computes a loss of it."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    origin = Path(importlib.util.find_spec(library).origin).parent
    init_default_scope(library)
    importlib.import_module(f"{library}.utils").register_all_modules()
    cfg = Config.fromfile(origin / ".mim" / "configs" / f"{config}.py").model
    norm_cfg = {"type": "BN"} if way == "convert" else {"type": key, **automatic(NORMS[key])}
    replace_norms(cfg, norm_cfg)
    loss_of = {"mmpretrain": classification, "mmseg": segmentation, "mmdet": detection}[library]
    return MODELS.build(cfg), lambda model: model.parse_losses(loss_of(model))[0]


def replace_norms(part, norm_cfg):
    """Set a norm in a config, in place, for BN, GN and IN; start from random weights."""
    for inner in part if isinstance(part, list | tuple) else ():
        replace_norms(inner, norm_cfg)
    if not isinstance(part, dict):
        return
    part.pop("pretrained", None)
    part.pop("init_cfg", None)
    if "type" in part and "norm_cfg" not in part and default_norm(part["type"]) in PLAIN:
        part["norm_cfg"] = dict(norm_cfg)
    for name, inner in list(part.items()):
        if isinstance(inner, dict) and name.endswith("norm_cfg") and inner.get("type") in PLAIN:
            part[name] = dict(norm_cfg)
        elif name != "upsample_cfg":  # UNet hands its own norm on to it
            replace_norms(inner, norm_cfg)


def default_norm(kind):
    """The type of the norm that a registered class has by default, or passes to its base class."""
    from mmengine.registry import MODELS

    with MODELS.switch_scope_and_registry(None) as registry:
        cls = registry.get(kind)
    for base in cls.__mro__ if cls else ():
        parameters = inspect.signature(base).parameters
        default = parameters["norm_cfg"].default if "norm_cfg" in parameters else None
        passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if default is not None or not passes_on:
            return default.get("type") if isinstance(default, dict) else None
    return None


def classification(model):
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    return model(torch.randn(2, 3, 224, 224), samples, mode="loss")


def segmentation(model):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    # LRASPP's head pools windows of 49 positions, at 1/8 of the image.
    shape = (512 if type(model.decode_head).__name__ == "LRASPPHead" else 128,) * 2
    sample = SegDataSample(metainfo={"img_shape": shape, "ori_shape": shape})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 2, (1, *shape)))
    sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *shape)))
    return model(torch.randn(2, 3, *shape), [sample, sample], mode="loss")


def detection(model):
    from mmdet.testing import demo_mm_inputs
    from mmengine.logging import MessageHub

    # TOOD and YOLOX read how far their training is.
    MessageHub.get_current_instance().update_info_dict({"epoch": 0, "iter": 0})
    with_mask = hasattr(model, "mask_head") or getattr(model, "with_mask", False)
    batch = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=4, with_mask=with_mask)
    return model(**model.data_preprocessor(batch, True), mode="loss")
