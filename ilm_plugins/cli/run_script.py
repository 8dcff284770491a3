"""The command ``run-script``, by which ``compare --command`` starts each run."""

import argparse

from ..comparison.command_source import run_script
from ..comparison.script_metric import ScriptMetric
from ..errors import writing_to


def run(args: argparse.Namespace) -> int:
    """Run the script, and record its metric; return the script's exit status."""
    metric = ScriptMetric.of(args.metric)
    with writing_to(args.folder):
        return run_script(args.command, args.folder, metric, args.seed, args.num_gpus)
