"""Time the layers and whole models; print the tables, write them, their JSON and a plot."""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

from ilm_plugins.frameworks.launch import keep_freed_memory

from . import layers, measure, models, report, training

PARTS = ("layers", "compiled", "models", "training")


def main() -> int:
    """Run the benchmark of a command line, print and write its tables; return exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=list(layers.SHAPES), choices=layers.SHAPES)
    parser.add_argument("--settings", nargs="+", choices=layers.SETTINGS, help="of the layers")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--tiny", action="store_true", help="maps and images, to try the command")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: a spread needs two at least")
    keep_freed_memory()
    if args.tiny:
        layers.SHAPES.update(dict.fromkeys(layers.SHAPES, (1, 32, 3, 3)))
        measure.WARM_UP = 0
        models.RESNET, models.SIDE = "resnet18", 32
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cuda":
        measure.select(device)
    else:
        warnings.filterwarnings("ignore", "ilm_plugins: plain torch operations run", UserWarning)
    possible = layers.SETTINGS_OF_CUDA if device.type == "cuda" else layers.SETTINGS_OF_CPU
    results = {
        "machine": measure.machine(device),
        "rounds": args.rounds,
        "layers": {},
        "compiled": [],
        "models": [],
        "training": {},
    }
    if "layers" in args.parts:
        for name in args.settings or possible:
            _log(f"layers, {name}")
            results["layers"][name] = list(layers.rows(device, name, args.rounds, args.shapes))
    if "compiled" in args.parts:
        _log("layers under torch.compile")
        shapes = [name for name in layers.COMPILED_SHAPES if name in args.shapes]
        results["compiled"] = list(layers.compiled_rows(device, args.rounds, shapes))
    if "models" in args.parts:
        _log("training steps")
        results["models"] = list(models.rows(device, args.rounds))
    if "training" in args.parts:
        _log("training steps under options")
        about = {key: results[key] for key in ("machine", "rounds")}
        results["training"] = about | {"rows": list(training.rows(device, args.rounds))}
    print(report.write(results, args.output))
    _log(f"wrote benchmark.json, .md and .png in {args.output}")
    return 0


def _log(what: str) -> None:
    """Print a message with the time to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


sys.exit(main())
