"""Which families of models train with each norm: ``python docs/families.py`` builds and runs them.

For each family one model makes one training step, with each of the package's norms whose options
follow the width. Results go to ``families.json`` after each model, and from there to
``families.md``; a later call continues with what is missing.
"""

import argparse
import importlib.util
import inspect
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilm_plugins import NORMS, surgery
from ilm_plugins.layers.base import AdaptiveNorm
from ilm_plugins.layers.options import automatic

FOLDER = Path(__file__).parent
#: Library -> its families: a name for torchvision and timm, for the others a pattern of a config.
FAMILIES = {
    "torchvision": (
        "resnet18 resnext50_32x4d wide_resnet50_2 mobilenet_v2 mobilenet_v3_small efficientnet_b0 "
        "efficientnet_v2_s regnet_y_400mf densenet121 googlenet inception_v3 mnasnet0_5 "
        "shufflenet_v2_x0_5 vgg11_bn convnext_tiny swin_t vit_b_32"
    ),
    "timm": (
        "resnet18 seresnet18 resnext26ts resnest14d res2net50_26w_4s resnetv2_50 regnetx_002 "
        "regnety_002 efficientnet_b0 tf_efficientnetv2_b0 mobilenetv2_100 mobilenetv3_small_050 "
        "mnasnet_small mixnet_s ghostnet_100 hrnet_w18_small densenet121 dla34 dpn48b cspresnet50 "
        "cspdarknet53 vovnet39a selecsls42 rexnet_100 gernet_s repvgg_a0 inception_v3 xception41 "
        "convnext_atto convnextv2_atto edgenext_xx_small mobilevit_xxs mobilevitv2_050 "
        "efficientformer_l1 levit_128s poolformer_s12 swin_tiny_patch4_window7_224 "
        "deit_tiny_patch16_224"
    ),
    "mmpretrain": (
        "resnet/resnet18_8xb32* resnext/resnext50* wrn/wide-resnet50_8* seresnet/seresnet50* "
        "res2net/res2net50-w14* resnest/resnest50* regnet/regnetx-400mf* hrnet/hrnet-w18* "
        "densenet/densenet121* vgg/vgg11bn* inception_v3/* mobilenet_v2/* "
        "mobilenet_v3/mobilenet-v3-small_8xb128* mobileone/mobileone-s0* shufflenet_v1/* "
        "shufflenet_v2/* efficientnet/efficientnet-b0_8xb32_* efficientnet_v2/efficientnetv2-b0* "
        "repvgg/repvgg-A0_8* cspnet/cspresnet50* convnext/convnext-tiny* "
        "mobilevit/mobilevit-xxsmall* edgenext/edgenext-xxsmall* van/van-tiny* levit/levit-128s* "
        "efficientformer/efficientformer-l1* poolformer/poolformer-s12* conformer/conformer-tiny* "
        "swin_transformer/swin-tiny*"
    ),
    "mmseg": (
        "fcn/fcn_r18-d8* pspnet/pspnet_r18-d8* deeplabv3/deeplabv3_r18-d8* "
        "deeplabv3plus/deeplabv3plus_r18-d8* upernet/upernet_r18* ocrnet/ocrnet_hr18s* "
        "hrnet/fcn_hr18s* danet/danet_r50* ccnet/ccnet_r50* ann/ann_r50* psanet/psanet_r50* "
        "apcnet/apcnet_r50* encnet/encnet_r50* emanet/emanet_r50* gcnet/gcnet_r50* "
        "dmnet/dmnet_r50* dnlnet/dnl_r50* nonlocal_net/nonlocal_r50* isanet/isanet_r50* "
        "fastfcn/fastfcn_r50* point_rend/pointrend_r50* sem_fpn/fpn_r50* fastscnn/* "
        "bisenetv1/bisenetv1_r18* bisenetv2/* cgnet/* erfnet/* icnet/icnet_r18* "
        "mobilenet_v2/mobilenet-v2-d8_fcn* mobilenet_v3/mobilenet-v3-d8-s* ddrnet/ddrnet_23-slim* "
        "pidnet/pidnet-s* stdc/stdc1_4* unet/unet-s5-d16_fcn* segnext/segnext_mscan-t* "
        "segformer/segformer_mit-b0*"
    ),
    "mmdet": (
        "faster_rcnn/faster-rcnn_r50_fpn_1x* mask_rcnn/mask-rcnn_r50_fpn_1x* "
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x* gn/mask-rcnn_r50_fpn_gn* "
        "retinanet/retinanet_r18_fpn_1x* fcos/fcos_r50-caffe_fpn_gn* atss/atss_r50_fpn_1x* "
        "gfl/gfl_r50_fpn_1x* paa/paa_r50_fpn_1x* tood/tood_r50_fpn_1x* vfnet/vfnet_r50_fpn_1x* "
        "solo/solo_r50_fpn_1x* solov2/solov2-light_r18* condinst/* rtmdet/rtmdet_tiny* "
        "yolox/yolox_tiny* yolo/yolov3_mobilenetv2* ssd/ssdlite* centernet/centernet-update_r18* "
        "nas_fpn/retinanet_r50_nasfpn* regnet/mask-rcnn_regnetx-400MF* "
        "hrnet/faster-rcnn_hrnetv2p-w18* res2net/faster-rcnn* efficientnet/* detr/detr_r18* "
        "deformable_detr/deformable-detr_r50_16*"
    ),
}
PLAIN = ("BN", "SyncBN", "GN", "IN")
NOTHING = "no norm was replaced"
#: Modules of activations, by the modules of Python that have them.
ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--only", default="", metavar="TEXT", help="families with TEXT in LIBRARY/NAME")
    p.add_argument("--norm", choices=NORMS, action="append", help="default: all")
    p.add_argument("--minutes", type=float, default=float("inf"), help="start no model later")
    p.add_argument("--folder", type=Path, default=FOLDER, help="of families.json and families.md")
    args = p.parse_args()
    path, start = args.folder / "families.json", time.monotonic()
    results = json.loads(path.read_text()) if path.is_file() else {}
    for library, families in FAMILIES.items():
        if importlib.util.find_spec(library) is None:
            continue
        for family in families.split():
            for key in args.norm or NORMS:
                row = f"{library}/{family}"
                if args.only not in row or key in results.get(row, ()):
                    continue
                if time.monotonic() - start > 60 * args.minutes:
                    return
                results.setdefault(row, {})[key] = outcome(library, family, key)
                print(row, key, results[row][key], flush=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
                (args.folder / "families.md").write_text(table(results))


def outcome(library: str, family: str, key: str) -> str:
    """Train a model for one step; return by which way it got the norm, or "no: " and the reason."""
    torch.manual_seed(0)
    reasons = []
    ways = named if library in ("torchvision", "timm") else configured
    for way, build in ways(library, family, key):
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
    return f"no: {next((r for r in reversed(reasons) if r != NOTHING), NOTHING)}"


def named(library: str, name: str, key: str) -> Iterator[tuple[str, Callable]]:
    """Yield ways of giving a model of torchvision or timm a norm: name, and a builder."""

    def norm(channels: int, **_: Any) -> nn.Module:
        return NORMS[key](channels, **automatic(NORMS[key]))

    def norm_act(channels: int, apply_act: bool = True, act_layer: Any = nn.ReLU, **_: Any):
        activates = apply_act and act_layer
        return nn.Sequential(norm(channels), act_layer()) if activates else norm(channels)

    def build(norm_layer: Callable | None = None) -> tuple[nn.Module, Callable]:
        side = 299 if "inception" in name else 224
        if library == "torchvision":
            from torchvision.models import get_model as create
        else:
            from timm import create_model as create
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
    if library == "timm":
        yield "separate, convert", lambda: converted(key, *separated(*build()))


def count_activations(model: nn.Module) -> int:
    """Count the activation modules of a model, except those inside this package's layers."""
    if isinstance(model, AdaptiveNorm):
        return 0
    return (type(model).__module__ in ACTIVATIONS) + sum(map(count_activations, model.children()))


def separated(model: nn.Module, loss_of: Callable) -> tuple[nn.Module, Callable]:
    """Separate timm's norms from their activations, as docs/interoperability.md does."""
    text = (FOLDER / "interoperability.md").read_text("utf-8")
    code = text.partition("for name, old in ")[2].partition("model, report")[0]
    names = {"timm": importlib.import_module("timm"), "nn": nn, "model": model}
    exec(f"for name, old in {code}", names)
    return model, loss_of


def converted(key: str, model: nn.Module, loss_of: Callable) -> tuple[nn.Module, Callable]:
    """Replace a model's BatchNorms; return it and ``loss_of``."""
    options = automatic(NORMS[key]) if key == "EN" else {}
    return surgery.convert(model, key, replacing="BN", **options)[0], loss_of


def classify(output: Any) -> Tensor:
    """Return a loss of a classifier's output, which may be a tuple of logits."""
    logits = output if isinstance(output, Tensor) else output[0]
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def configured(library: str, pattern: str, key: str) -> Iterator[tuple[str, Callable]]:
    """Yield ways of giving the model of OpenMMLab's first config that fits a pattern a norm."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    origin = Path(importlib.util.find_spec(library).origin).parent
    path = min((origin / ".mim" / "configs").glob(f"{pattern}.py"))
    init_default_scope(library)
    importlib.import_module(f"{library}.utils").register_all_modules()
    loss_of = {
        "mmpretrain": classification_loss,
        "mmseg": segmentation_loss,
        "mmdet": detection_loss,
    }[library]

    def build(norm_cfg: dict | None) -> tuple[nn.Module, Callable]:
        cfg = Config.fromfile(path).model
        replace_norms(cfg, norm_cfg or {"type": "BN"})
        return MODELS.build(cfg), loss_of

    yield "norm_cfg", lambda: build({"type": key, **automatic(NORMS[key])})
    yield "convert", lambda: converted(key, *build(None))


def replace_norms(part: Any, norm_cfg: dict) -> None:
    """Set a norm in a config, in place, for BN, GN and IN; start from random weights."""
    if isinstance(part, list | tuple):
        for inner in part:
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


def default_norm(kind: str) -> str | None:
    """Return the type of the norm that a registered class of OpenMMLab has by default.

    A constructor without ``norm_cfg`` may pass it to its base class, among its **kwargs.
    """
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


def classification_loss(model: nn.Module) -> Tensor:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(label) for label in (0, 1)]
    losses = model(torch.randn(2, 3, 224, 224), samples, mode="loss")
    return model.parse_losses(losses)[0]


def segmentation_loss(model: nn.Module) -> Tensor:
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
    losses = model(torch.randn(2, 3, *shape), samples, mode="loss")
    return model.parse_losses(losses)[0]


def detection_loss(model: nn.Module) -> Tensor:
    from mmdet.testing import demo_mm_inputs
    from mmengine.logging import MessageHub

    # TOOD and YOLOX read how far their training is.
    MessageHub.get_current_instance().update_info_dict({"epoch": 0, "iter": 0})
    with_mask = hasattr(model, "mask_head") or getattr(model, "with_mask", False)
    batch = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=4, with_mask=with_mask)
    data = model.data_preprocessor(batch, True)
    return model.parse_losses(model(**data, mode="loss"))[0]


def table(results: dict[str, dict[str, str]]) -> str:
    """Return the page: a table for each library, and why families do not train.

    Args:
        results: LIBRARY/FAMILY -> key of a norm -> what :func:`outcome` returned.
    """
    lines = [
        "# Families of models",
        "",
        "The tables show how to put the layers of this package into a model of each family.",
        "One model of each family was trained for one step with each norm, with options that",
        'follow the width ("auto"). The norm was passed as `norm_layer`, as the function',
        "`norm_act` of the page on [other models](interoperability.md), or as `norm_cfg` of",
        'all parts whose norm was BN, GN or IN; or `surgery.convert` with `replacing="BN"`',
        'put it in ("convert"), after that page\'s code separated norms and activations',
        '("separate, convert"). "no" is followed by the error.',
        "Made by `python docs/families.py`.",
    ]
    names = {layer.__name__ for layer in NORMS.values()}
    for library in FAMILIES:
        rows = {n.split("/")[1]: r for n, r in results.items() if n.startswith(f"{library}/")}
        if not rows:
            continue
        lines += ["", f"## {library}", "", "| family | how the norm is set |", "|---|---|"]
        for family, found in rows.items():
            keys_of: dict[str, list[str]] = {}
            for key, outcome in found.items():
                way, _, reason = outcome.partition(": ")
                reason = reason.partition(": ")[2] if reason.split(":")[0] in names else reason
                reason = reason[:200].replace("__", r"\_\_")
                words = f"no: {reason}" if way == "no" else way
                keys_of.setdefault(words, []).append(key)
            ways = (f"{words} ({', '.join(keys)})" for words, keys in keys_of.items())
            lines.append(
                f"| {family} | {next(iter(keys_of)) if len(keys_of) == 1 else '; '.join(ways)} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
