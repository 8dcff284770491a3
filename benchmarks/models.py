"""Whole training steps: a detector's with GN and ILM+GN, and ResNet-50's with each norm."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ilm_plugins import ExemplarNorm, ILMGroupNorm, SwitchNorm

from . import measure

CONFIGS = Path(__file__).parents[1] / "configs" / "detectron2"

NORMS = {"GN": partial(nn.GroupNorm, 32), "ILMGN": ILMGroupNorm}
NORMS |= {"BN": nn.BatchNorm2d, "SN": SwitchNorm, "EN": ExemplarNorm}
#: Model -> (norm, baseline) to compare.
PAIRS = {
    "Mask R-CNN": [("ILMGN", "GN")],
    "ResNet-50": [("ILMGN", "GN"), ("EN", "BN"), ("SN", "BN")],
}


def rows(device: torch.device, rounds: int) -> Iterator[dict]:
    """Measure losses and gradients of each norm against its baseline, or name a missing package."""
    for model, make in (("Mask R-CNN", mask_rcnn_steps), ("ResNet-50", resnet_steps)):
        try:
            steps = make(device)
        except ImportError as error:
            yield {"model": model, "missing": f"needs {error.name}"}
            continue
        times = measure.interleaved(steps, rounds)
        for norm, baseline in PAIRS[model]:
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

    height, width = (800, 1216) if device.type == "cuda" else (256, 320)

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


def resnet_steps(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return norm -> step of ResNet-50 on 32 random images, on the CPU 4."""
    from torchvision.models import resnet50

    batch = 32 if device.type == "cuda" else 4
    x, target = torch.randn(batch, 3, 224, 224, device=device), torch.arange(batch, device=device)

    def step(norm_layer) -> Callable[[], None]:
        model = resnet50(norm_layer=norm_layer).to(device)

        def run() -> None:
            loss = nn.functional.cross_entropy(model(x), target)
            torch.autograd.grad(loss, list(model.parameters()))

        return run

    return {name: step(norm_layer) for name, norm_layer in NORMS.items()}
