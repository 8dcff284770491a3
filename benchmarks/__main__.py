"""Time the layers and whole models on the CPU; print and write the tables and JSON."""

import argparse
import sys
import warnings
from pathlib import Path

import torch

from ilm_plugins.frameworks.run.processes import keep_freed_memory

from . import layers, measure, models, report

PARTS = ("layers", "activations", "compiled", "models")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="2 at least")
    names = list(layers.BASELINES)
    parser.add_argument("--layers", nargs="+", default=names, choices=names)
    parser.add_argument("--shapes", nargs="+", default=list(layers.SHAPES), choices=layers.SHAPES)
    settings = layers.SETTINGS_OF_CPU
    parser.add_argument("--settings", nargs="+", default=settings, choices=settings)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    args = parser.parse_args()
    if args.rounds < 2 or args.threads < 1:
        parser.error(f"--rounds {args.rounds} --threads {args.threads}: give 2, and 1, at least")
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cpu")
    warnings.filterwarnings("ignore", "ilm_plugins: plain torch operations run", UserWarning)
    results = {"machine": measure.machine(device), "rounds": args.rounds}
    results |= {"layers": {}, "activations": {}, "compiled": [], "models": []}
    if "layers" in args.parts:
        for name in args.settings:
            print(f"layers, {name}", file=sys.stderr)
            rows = layers.rows(device, name, args.rounds, args.shapes, args.layers)
            results["layers"][name] = list(rows)
    if "activations" in args.parts:
        activated = [name for name in layers.ACTIVATED_LAYERS if name in args.layers]
        for name in layers.ACTIVATED_SETTINGS:
            print(f"activations, {name}", file=sys.stderr)
            rows = layers.activated_rows(device, name, args.rounds, args.shapes, activated)
            results["activations"][name] = list(rows)
    if "compiled" in args.parts:
        shapes = [name for name in layers.COMPILED_SHAPES if name in args.shapes]
        results["compiled"] = list(layers.compiled_rows(device, args.rounds, shapes))
    if "models" in args.parts:
        results["models"] = list(models.rows(device, args.rounds))
    print(report.write(results, args.output))


if __name__ == "__main__":
    main()
