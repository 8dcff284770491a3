"""The report of ILM Norm's Table 6, pix2pix on Facades; see ``tools/report_facades.py``.

Runs of ``configs/pix2pix/facades_*.py``, after ``--eval-only``, beside the paper's figures. A run
with less than the recipe's epochs or images is reported as shortened, and never in a row of the
paper's.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from ...data.pairs import PairError, check_pairs, two_folders
from ...evaluation import images
from ..training import UserError
from .translation import PairedImages

#: Norms of generator / discriminator -> the figures of Table 6.
PAPER = {
    "IN / IN": {"rmse": 108.17, "lpips": 0.441, "ssim": 0.372},
    "ILM+IN / IN": {"rmse": 105.46, "lpips": 0.428, "ssim": 0.372},
    "ILM+IN / ILM+IN": {"rmse": 105.82, "lpips": 0.435, "ssim": 0.390},
}
CONFIGS = {
    "IN / IN": "configs/pix2pix/facades_in_in.py",
    "ILM+IN / IN": "configs/pix2pix/facades_ilmin_in.py",
    "ILM+IN / ILM+IN": "configs/pix2pix/facades_ilmin_ilmin.py",
}
NAMES = {"IN": "IN", "ILMIN": "ILM+IN"}
EPOCHS, IMAGES = 200, 200


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report.

    Returns:
        The exit status: 0, or 2 after printing one line about the user's mistake.
    """
    parser = argparse.ArgumentParser(
        description="Report runs of pix2pix on Facades beside the paper's Table 6."
    )
    parser.add_argument(
        "--run",
        nargs=2,
        action="append",
        default=[],
        metavar=("WORK_DIR", "COMMAND"),
        help="a folder that was trained and evaluated by tools/train_net.py, and how; repeatable",
    )
    parser.add_argument("--device", default="CPU", help="what they ran on, in words")
    parser.add_argument("--lpips-weights", metavar="FILE", help="torchvision's alexnet-*.pth")
    parser.add_argument("--output", default="reports/facades.json", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(folder, command, args.lpips_weights) for folder, command in args.run]
        text = json.dumps(report(runs, args.device), indent=2, ensure_ascii=False)
        path = Path(args.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except (UserError, PairError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    return 0


def report(runs: Sequence[dict], device: str) -> dict:
    """Runs, of :func:`read_run`, by the rows of the paper."""
    full = {run["method"]: run for run in runs if run["full recipe"]}
    return {
        "task": "pix2pix on CMP Facades, label map to photo, 256 x 256",
        "measures": images.__doc__,
        "device": device,
        "torch": torch.__version__,
        "table 6": [
            {
                "method": method,
                "config": CONFIGS[method],
                "paper": figures,
                "ours": full.get(method, "not run"),
            }
            for method, figures in PAPER.items()
        ],
        "shortened": [run for run in runs if not run["full recipe"]],
    }


def read_run(folder: str, command: str, lpips_weights: str | None = None) -> dict:
    """What a run was, its losses by epochs, its figures, and those of the mean training image.

    Raises:
        UserError: the folder has no config or no losses.
        PairError: it has no images of ``--eval-only``.
    """
    configs = sorted(Path(folder).glob("*/vis_data/config.py"))
    if not configs:
        raise UserError(f"{folder} has no run of tools/train_net.py: no */vis_data/config.py")
    # The config of the first is that of the training; evaluations follow it.
    cfg = Config.fromfile(configs[0])
    losses = epochs(folder)
    if not losses:
        raise UserError(f"{folder} has no losses in */vis_data/scalars.json; train first")
    chosen = images.measures(lpips_weights=lpips_weights)
    pairs = two_folders(Path(folder) / "test" / "output", Path(folder) / "test" / "target")
    check_pairs(pairs)
    targets = [images.read(pair.target) for pair in pairs]
    outputs = (images.read(pair.input) for pair in pairs)
    options = {k: v for k, v in cfg.train_dataloader.dataset.items() if k != "type"}
    trained = PairedImages(**{**options, "load_size": None})
    mean = images.mean_image(sample["target"] for sample in trained)
    found = {"figures": images.compare(zip(outputs, targets, strict=True), chosen)}
    found["mean training image"] = images.compare(((mean, t) for t in targets), chosen)
    if "lpips" not in chosen:
        for row in found.values():
            row["lpips"] = None
        found["lpips"] = images.NO_WEIGHTS
    length = len(losses)
    averages = [h.momentum for h in cfg.get("custom_hooks", ()) if h.type == "EMAHook"]
    return {
        "method": " / ".join(
            NAMES.get(kind, kind)
            for kind in (cfg.model[n].norm_cfg.type for n in ("generator", "discriminator"))
        ),
        "full recipe": length >= EPOCHS and len(trained) >= IMAGES,
        "training images": len(trained),
        "epochs": length,
        "seed": cfg.randomness.seed,
        "moving average of weights, momentum": averages[0] if averages else None,
        "command": command,
        **found,
        "losses by epoch": losses,
    }


def epochs(folder: str) -> list[dict[str, float]]:
    """The mean of each loss over each epoch, of what was logged."""
    rows: dict[int, list[dict]] = {}
    for path in sorted(Path(folder).glob("*/vis_data/scalars.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "loss_G_L1" in entry:
                rows.setdefault(entry["epoch"], []).append(entry)
    names = ("loss_D_real", "loss_D_fake", "loss_G_GAN", "loss_G_L1")
    return [
        {name: round(float(np.mean([e[name] for e in rows[epoch]])), 4) for name in names}
        for epoch in sorted(rows)
    ]


def table(runs: Sequence[dict]) -> str:
    """The figures of runs and of the mean images, as a table in Markdown."""
    lines = ["| | images | epochs | " + " | ".join(images.NAMES) + " |"]
    lines.append("|---" * (3 + len(images.NAMES)) + "|")
    for run in runs:
        size = f"{run['training images']} | {run['epochs']}"
        for label, key in (
            (run["method"], "figures"),
            ("mean training image", "mean training image"),
        ):
            values = (run[key][name] for name in images.NAMES)
            cells = " | ".join("-" if value is None else f"{value:.3f}" for value in values)
            lines.append(f"| {label} | {size} | {cells} |")
    return "\n".join(lines)
