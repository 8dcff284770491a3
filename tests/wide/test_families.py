"""The record docs/families.json: one model of each family takes a training step with each norm.

A failure shows how the norm is set now, for the record.
"""

import importlib
import inspect
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, surgery
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.layers.options import automatic

DOCS = Path(__file__).parents[2] / "docs"
KEYS = ("ILMGN", "EN", "SN", "AN")  # the other norms have the same options and take the same input
NOTHING = "no norm was replaced"
#: Modules of activations, by the modules of Python that have them.
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


def rows():
    """(library, model, how the norm is set) for each row of the record."""
    for library, models in json.loads((DOCS / "families.json").read_text("utf-8")).items():
        yield from ((library, model, way) for model, way in models.items())


@pytest.mark.long
@pytest.mark.parametrize("library, model, words", list(rows()))
def test_a_family_trains_as_the_record_says(library, model, words):
    pytest.importorskip(library, reason=f"needs {library}'s models")
    keys_of = {}
    for key in KEYS:
        keys_of.setdefault(outcome(library, model, key), []).append(key)
    found = "; ".join(f"{way} ({', '.join(keys)})" for way, keys in keys_of.items())
    assert words == (next(iter(keys_of)) if len(keys_of) == 1 else found)


def outcome(library, name, key):
    """By which way a model that takes a training step got the norm, or "no: " and the reason."""
    torch.manual_seed(0)
    reasons = []
    ways = named if library in ("torchvision", "timm") else configured
    for way, build in ways(library, name, key):
        try:
            model, loss_of = build()
            layers = [m for m in model.modules() if isinstance(m, AdaptiveNorm)]
            if not layers:
                raise ValueError(NOTHING)
            loss_of(model.train()).backward()
            grads = [m.weight.grad for m in layers if m.weight.grad is not None]
            if not grads or not all(grad.isfinite().all() for grad in grads):
                raise ValueError("gradients are missing, infinite or NaN")
            return way
        except Exception as error:  # models raise what they like
            reasons.append(" ".join(str(error).split()) or type(error).__name__)
    reason = next((r for r in reversed(reasons) if r != NOTHING), NOTHING)
    head, _, tail = reason.partition(": ")
    reason = tail if head in {layer.__name__ for layer in NORMS.values()} else reason
    return f"no: {reason[:200]}"


def named(library, name, key):
    """Ways of giving a model of torchvision or timm a norm: name, and a builder."""

    def norm(channels, **_):
        return NORMS[key](channels, **automatic(NORMS[key]))

    def norm_act(channels, apply_act=True, act_layer=nn.ReLU, **_):
        activates = apply_act and act_layer
        return nn.Sequential(norm(channels), act_layer()) if activates else norm(channels)

    def build(norm_layer=None):
        side = 299 if "inception" in name else 224
        where = importlib.import_module("timm" if library == "timm" else "torchvision.models")
        create = where.create_model if library == "timm" else where.get_model
        model = create(name, num_classes=10)
        if norm_layer:
            activations = count_activations(model)
            model = create(name, num_classes=10, norm_layer=norm_layer)
            if count_activations(model) < activations:
                raise ValueError("activations are missing")
        if library == "timm":
            side = model.default_cfg["input_size"][-1]
        return model, lambda model: classify(model(torch.randn(2, 3, side, side)))

    yield "norm_layer", lambda: build(norm)
    if library == "timm":
        yield "norm_act", lambda: build(norm_act)
    yield "convert", lambda: converted(key, *build())


def count_activations(model):
    """Count the activation modules of a model, except those inside this package's layers."""
    if isinstance(model, AdaptiveNorm):
        return 0
    return (type(model).__module__ in ACTIVATIONS) + sum(map(count_activations, model.children()))


def converted(key, model, loss_of):
    options = automatic(NORMS[key]) if key == "EN" else {}
    return surgery.convert(model, key, replacing="BN", **options)[0], loss_of


def classify(output):
    logits = output if isinstance(output, torch.Tensor) else output[0]
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def configured(library, config, key):
    """Ways of giving the model of one of OpenMMLab's configs a norm."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    origin = Path(importlib.util.find_spec(library).origin).parent
    init_default_scope(library)
    importlib.import_module(f"{library}.utils").register_all_modules()
    loss_of = {"mmpretrain": classification, "mmseg": segmentation, "mmdet": detection}[library]

    def build(norm_cfg=None):
        cfg = Config.fromfile(origin / ".mim" / "configs" / f"{config}.py").model
        replace_norms(cfg, norm_cfg or {"type": "BN"})
        return MODELS.build(cfg), loss_of

    yield "norm_cfg", lambda: build({"type": key, **automatic(NORMS[key])})
    yield "convert", lambda: converted(key, *build())


def replace_norms(part, norm_cfg):
    """Set a norm in a config, in place, for BN, GN and IN; start from random weights."""
    if isinstance(part, list | tuple):
        for inner in part:
            replace_norms(inner, norm_cfg)
    if not isinstance(part, dict):
        return
    plain = ("BN", "SyncBN", "GN", "IN")
    part.pop("pretrained", None)
    part.pop("init_cfg", None)
    if "type" in part and "norm_cfg" not in part and default_norm(part["type"]) in plain:
        part["norm_cfg"] = dict(norm_cfg)
    for name, inner in list(part.items()):
        if isinstance(inner, dict) and name.endswith("norm_cfg") and inner.get("type") in plain:
            part[name] = dict(norm_cfg)
        elif name != "upsample_cfg":  # UNet hands its own norm on to it
            replace_norms(inner, norm_cfg)


@cache
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
    return model.parse_losses(model(torch.randn(2, 3, 224, 224), samples, mode="loss"))[0]


def segmentation(model):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    # LRASPP's head pools windows of 49 positions, at 1/8 of the image.
    side = 512 if type(model.decode_head).__name__ == "LRASPPHead" else 128
    samples, shape = [], (side, side)
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": shape, "ori_shape": shape})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 2, (1, *shape)))
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *shape)))
        samples.append(sample)
    return model.parse_losses(model(torch.randn(2, 3, *shape), samples, mode="loss"))[0]


def detection(model):
    from mmdet.testing import demo_mm_inputs
    from mmengine.logging import MessageHub

    # TOOD and YOLOX read how far their training is.
    MessageHub.get_current_instance().update_info_dict({"epoch": 0, "iter": 0})
    with_mask = hasattr(model, "mask_head") or getattr(model, "with_mask", False)
    batch = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=4, with_mask=with_mask)
    return model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))[0]
