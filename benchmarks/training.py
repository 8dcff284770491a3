"""Whole training steps, the optimizer's included, under options that make them faster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from . import measure

CONFIGS = Path(__file__).parents[1] / "configs"

#: Training step -> its config, and the shape of a batch.
STEPS = {
    "ResNet-20, BN": ("mmpretrain/en/resnet20_cifar10_bn.py", (128, 3, 32, 32)),
    "ResNet-20, EN": ("mmpretrain/en/resnet20_cifar10_en.py", (128, 3, 32, 32)),
    "pix2pix, IN / IN": ("pix2pix/facades_in_in.py", (1, 3, 256, 256)),
    "pix2pix, ILM+IN / IN": ("pix2pix/facades_ilmin_in.py", (1, 3, 256, 256)),
}


class Options(NamedTuple):
    """How a model is trained.

    Attributes:
        channels_last: whether weights and feature maps have channels last.
        fused: whether torch's fused optimizer is taken.
        amp: whether in mixed precision, on the CPU bfloat16.
    """

    channels_last: bool = False
    fused: bool = False
    amp: bool = False


#: The first is the one that the others are compared with.
OPTIONS = {
    "plain": Options(),
    "channels last": Options(channels_last=True),
    "fused": Options(fused=True),
    "both": Options(channels_last=True, fused=True),
    "both, mixed precision": Options(channels_last=True, fused=True, amp=True),
}


def has_bfloat16(device: torch.device) -> bool:
    """Whether steps in mixed precision are measured; on a CPU of AVX2 they take many seconds."""
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability() not in (
        "AVX2",
        "DEFAULT",
    )


def rows(device: torch.device, rounds: int) -> Iterator[dict]:
    """Measure each training step under each of OPTIONS.

    Args:
        device: device of the models; the optimizer wrappers of mixed precision take MMEngine's own.
        rounds: number of measurements of each step.

    Yields:
        For each step, a dict with median "seconds" and, "over plain", the quartiles of the ratio
        (see :func:`.measure.ratio`), by options; "missing", if its package is not installed.
    """
    chosen = {k: o for k, o in OPTIONS.items() if not o.amp or has_bfloat16(device)}
    for name, (config, shape) in STEPS.items():
        try:
            steps = {k: step(config, shape, device, options) for k, options in chosen.items()}
        except ImportError as error:
            yield {"step": name, "missing": f"needs {error.name}"}
            continue
        times = measure.interleaved(steps, rounds, measure.wall)
        yield {
            "step": name,
            "batch": shape,
            "seconds": {k: median(seconds) for k, seconds in times.items()},
            "over plain": {k: measure.ratio(times[k], times["plain"]) for k in times},
        }


def step(
    config: str, shape: tuple[int, ...], device: torch.device, options: Options
) -> Callable[[], None]:
    """Return a training step of an MMEngine config on one random batch: losses to optimizer.

    Args:
        config: path of the config in configs/.
        shape: of the batch's images, (N, 3, H, W).
        device: device of the model.
        options: how it is trained; an optimizer's ``fused`` in the config is overridden.

    Raises:
        ImportError: MMEngine or mmpretrain is not installed.
    """
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import Runner  # noqa: F401  # after it, pix2pix is registered

    from ilm_plugins.frameworks.openmmlab.mixed_precision import mixed

    cfg = Config.fromfile(CONFIGS / config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    wrapper = cfg.optim_wrapper
    for part in (wrapper, *wrapper.values()):
        if isinstance(part, dict) and "optimizer" in part:
            part.optimizer.fused = options.fused
    wrapper = build_optim_wrapper(model, mixed(wrapper) if options.amp else wrapper)
    images = [list(torch.randint(256, shape, dtype=torch.uint8)) for _ in range(2)]
    if cfg.default_scope == "mmpretrain":
        from mmpretrain.structures import DataSample

        labels = [DataSample().set_gt_label(i % 10) for i in range(shape[0])]
        batch = {"inputs": images[0], "data_samples": labels}
    else:
        batch = dict(zip(("input", "target"), images, strict=True))
    return lambda: model.train_step(batch, wrapper)
