"""Whole training steps: a detector's with GN and ILM+GN, and of classifiers with each norm."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ilm_plugins import NORMS as layers
from ilm_plugins import surgery

from . import measure

CONFIGS = Path(__file__).parents[1] / "configs" / "detectron2"

NORMS = {"GN": lambda c: nn.GroupNorm(math.gcd(32, c), c), "BN": nn.BatchNorm2d} | layers
#: Ends the name of a norm that applies the activation itself.
FUSED = ", fused"
#: Model -> (norm, baseline) to compare.
PAIRS = {
    "Mask R-CNN": [("ILMGN", "GN")],
    "ResNet-50": [("ILMGN", "GN"), ("EN", "BN"), ("SN", "BN")],
    "EfficientNet-B0": [("ILMGN", "GN"), ("EN", "BN")],
}
PAIRS["EfficientNet-B0"] += [(f"{norm}{FUSED}", norm) for norm in ("ILMGN", "EN")]


def rows(device: torch.device, rounds: int) -> Iterator[dict]:
    """Measure losses and gradients of each norm against its baseline."""
    for model, pairs in PAIRS.items():
        is_detector = model == "Mask R-CNN"
        steps = mask_rcnn_steps(device) if is_detector else classifier_steps(model, device)
        times = measure.interleaved(steps, rounds)
        for norm, baseline in pairs:
            yield {
                **{"model": model, "norm": norm, "baseline": baseline},
                "seconds": median(times[norm]),
                "baseline seconds": median(times[baseline]),
                "over baseline": measure.ratio(times[norm], times[baseline]),
                "peak bytes": {n: measure.peak_bytes(steps[n], device) for n in (norm, baseline)},
            }


def mask_rcnn_steps(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return norm -> step of Mask R-CNN, whose box head has that norm and gets 512 proposals."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    height, width = 256, 320

    def step(norm: str) -> Callable[[], None]:
        cfg = get_cfg()
        cfg.merge_from_file(str(CONFIGS / f"mask_rcnn_R_50_FPN_batch2_{norm.lower()}.yaml"))
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", device.type
        torch.manual_seed(0)
        model = build_model(cfg)
        corners = torch.rand(8, 2) * torch.tensor([width / 2, height / 2])
        boxes = Boxes(torch.cat([corners, corners + 40 + 60 * torch.rand(8, 2)], 1))
        masks = BitMasks(torch.rand(8, height, width) > 0.5)
        targets = {"gt_boxes": boxes, "gt_classes": torch.arange(8), "gt_masks": masks}
        pixels = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
        image = {"image": pixels, "instances": Instances((height, width), **targets)}
        parameters = [p for p in model.parameters() if p.requires_grad]

        def run() -> None:
            torch.manual_seed(1)  # detectron2 samples proposals at random
            with EventStorage():
                losses = model([image])
            torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)

        return run

    return {norm: step(norm) for norm in ("GN", "ILMGN")}


def classifier_steps(name: str, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return norm -> step of one of torchvision's models on four random images."""
    from torchvision import models

    x, target = torch.randn(4, 3, 224, 224, device=device), torch.arange(4, device=device)
    build = getattr(models, name.lower().replace("resnet-", "resnet").replace("-", "_"))

    def step(norm: str) -> Callable[[], None]:
        torch.manual_seed(0)
        model = build(norm_layer=NORMS[norm.removesuffix(FUSED)]).to(device)
        if norm.endswith(FUSED):
            surgery.fuse_activations(model)

        def run() -> None:
            loss = nn.functional.cross_entropy(model(x), target)
            torch.autograd.grad(loss, list(model.parameters()))

        return run

    return {norm: step(norm) for norm in dict.fromkeys(itertools.chain(*PAIRS[name]))}
