"""Time the layers and whole models; print one table, write it, its JSON and its plot."""

import argparse
import os
import sys
from pathlib import Path

import torch

from . import layers, models, report

#: With glibc's own thresholds a tensor's memory goes back to the system when it is freed, and page
#: faults on the next one decide the times.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=list(layers.SHAPES), choices=layers.SHAPES)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="under torch.compile, too")
    parser.add_argument("--no-models", action="store_true", help="layers alone")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"))
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: a spread needs two at least")
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | MALLOC
        )

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    results = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": args.threads,
        "layout": "channels last" if args.channels_last else "contiguous",
        "rounds": args.rounds,
        "layers": list(layers.rows(device, layout, args.rounds, args.shapes)),
        "models": [],
        "compiled": [],
    }
    results["means"] = report.means(results["layers"])
    if args.compile:
        results["compiled"] = list(layers.compiled_rows(device, layout, args.rounds, args.shapes))
    report.write(results, args.output)
    if not args.no_models:
        results["models"] = list(models.rows(device, args.rounds))
    report.write(results, args.output)
    print(report.table(results))
    print(f"\nwrote {args.output}/benchmark.json, .md and .png")
    return 0


sys.exit(main())
